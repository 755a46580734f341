"""SocketServer: makes the parts of a server, starts, drains and stops them."""

import contextlib
import functools
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

from flask import Flask

from socketio_pg.access.access import Access
from socketio_pg.access.authentication import Authenticate
from socketio_pg.access.tickets import Tickets
from socketio_pg.access.tokens import Claims
from socketio_pg.cluster.node import ClusterManager
from socketio_pg.cluster.select import Cluster
from socketio_pg.core import config, green, green_library
from socketio_pg.core.errors import ConfigurationError, DatabaseError, UntrustedSchemaError
from socketio_pg.core.problems import Problem
from socketio_pg.core.seal import Seal
from socketio_pg.core.sealing import Sealing
from socketio_pg.engine import hosting
from socketio_pg.engine.front import Front
from socketio_pg.engine.router import Router
from socketio_pg.gateway.admission import Admission
from socketio_pg.gateway.delivery import Delivery
from socketio_pg.gateway.gauges import Gauges
from socketio_pg.gateway.handlers import Handlers
from socketio_pg.gateway.health import Health
from socketio_pg.gateway.idle import Idle
from socketio_pg.gateway.lifecycle import ClientLifecycle
from socketio_pg.gateway.limits import ClientLimits
from socketio_pg.gateway.live_rights import LiveRights
from socketio_pg.gateway.live_tables import LiveTables
from socketio_pg.gateway.node_health import NodeHealth
from socketio_pg.gateway.node_metrics import NodeMetrics
from socketio_pg.gateway.process_health import ProcessHealth
from socketio_pg.gateway.restoring import Restoring
from socketio_pg.log.backlog import Backlog
from socketio_pg.log.installer import Installer
from socketio_pg.log.relay import Relay
from socketio_pg.postgres.schema import install
from socketio_pg.protocol.extension import SocketIO, middleware_of
from socketio_pg.pubsub.pubsub import PubSub
from socketio_pg.recovery.keeping import Keeping
from socketio_pg.streams.streams import Streams
from socketio_pg.web.api import Api, create_api_blueprint
from socketio_pg.web.pages import create_blueprint
from socketio_pg.workers import node
from socketio_pg.workers.ending import Ending
from socketio_pg.workers.local_counts import Counts, LocalCounts
from socketio_pg.workers.workers import Workers

logger = logging.getLogger("socketio_pg.websocket")


class SocketServer:
    """A Socket.IO server whose rooms are PostgreSQL channels, on ``app`` or on a new Flask application.

    ``dsn`` is the database's address; the default is that of the settings, then ``SQLALCHEMY_DATABASE_URI`` of ``app``.
    ``enable_test_page`` serves the playground at ``/socket-test``; ``test`` adds the event ``test_pub``. ``port`` is
    for :meth:`run`. ``settings`` has all other settings; the default is :func:`config.load`.
    ``authenticate(request, auth)`` replaces tokens: it gets Flask's request of the handshake, within its context, and
    the ``auth`` of the client. It returns :class:`Claims` or None, or raises :class:`UnauthorizedError`.
    ``binary`` allows binary data in events of the application; otherwise a client that sends any is disconnected.
    ``counts`` counts connections and attempts for their limits; the default is for all workers of this node.

    ``.socketio`` is Flask-SocketIO, for the application's own handlers; ``.pubsub`` is the :class:`PubSub` underneath.

    Raises :class:`ConfigurationError`, for instance when there is no database address, or on another server than
    gunicorn's worker for eventlet or gevent and their own.
    """

    def __init__(
        self,
        app: Flask | None = None,
        dsn: str | None = None,
        enable_test_page: bool = False,
        port: int = 3030,
        test: bool = False,
        settings: config.Settings | None = None,
        authenticate: Authenticate | None = None,
        binary: bool = False,
        counts: Counts | None = None,
    ) -> None:
        refusal = hosting.refusal_at_start()
        if refusal is not None:
            raise ConfigurationError(f"{refusal}.")
        # A dsn given here leaves no reason to read the working folder's local.cfg.
        self.settings = settings = settings or config.load(file=None if dsn else config.LOCAL_CFG)
        self.app = app = app if app is not None else Flask("socketio_pg", static_folder=None)
        self.port = port
        self._started = False
        self._drained = green.Event()
        self._serving: green.GreenThread | None = None
        # A payload with its envelope; Engine.IO's default is 1,000,000.
        max_bytes = max(1_000_000, settings.max_payload) + 65_536

        found = node.current()
        #: The workers of this node; None when this is the only one.
        self.workers = workers = None if found is None else Workers(found, self._lead)
        # What the nodes send each other is sealed; PubSub reads the key.
        self.sealing = Sealing(Seal())
        cluster = Cluster(settings, self.sealing, workers)
        self.pubsub = PubSub(
            dsn or settings.database_url or app.config.get("SQLALCHEMY_DATABASE_URI"),
            settings.listen_database_url,
            listener=cluster.create_listener,
            publisher=cluster.create_publisher,
            keys=cluster.create_keys,
            share_history=workers is not None,
            durable_channels=settings.durable_channels,
            max_payload=settings.max_payload,
            cluster_key=settings.cluster_key,
            sealing=self.sealing,
            schema_owner=settings.schema_owner,
        )
        database, hub, log = self.pubsub.database, self.pubsub.hub, self.pubsub.log
        self._node_health = view = None
        if workers is not None:
            self._node_health = view = NodeHealth(workers.node, workers.peers, self.health, lambda: len(hub))
        self.relay = Relay(
            database,
            settings.log_retention,
            settings.log_max_messages,
            lambda: (log.position, len(hub) if view is None else view.clients),
            self.sealing.seal,
            cluster.create_forwarder(database),
            self.sealing.refused,
            found,
            lambda: [] if view is None else view.workers,
        )
        self._installer = Installer(database, settings.max_payload, lambda: log.installed, self.relay.look)
        self.backlog = Backlog(database, count=settings.metrics_token is not None)
        self._listen_for_workers = cluster.create_workers_forwarder(database)
        # The relay may have looked for the schema before it was installed.
        self.pubsub.watch_log(self.relay.look)

        manager = cluster.create_manager(self.pubsub)
        self.limits = ClientLimits(settings)
        self.keeping = Keeping(settings, self.pubsub, log, manager)
        self._delivery = delivery = Delivery(
            manager, self.pubsub, hub, log, self.limits, self.keeping, settings.send_buffer_bytes
        )
        self.access = Access(
            settings,
            app,
            authenticate,
            self.pubsub,
            revoke=lambda sid, channel: self._deliverer(sid).revoke(sid, channel),
            warn_expiring=lambda session: self._deliverer(session.sid).emit_expiring(session),
            expire=lambda session: self._deliverer(session.sid).expire(session),
        )
        self._tables = LiveTables(
            settings,
            manager,
            self.pubsub,
            delivery.replays,
            LiveRights(settings, self.access.permissions, self.access.sessions),
            self.limits,
        )
        self._router = None
        if workers is not None:
            self._router = Router(
                workers.node,
                workers.peers,
                sessions=lambda: len(self.socketio.server.eio.sockets) + len(self.streams),
                draining=lambda: self._admission.draining,
            )
        self._ending = Ending(found)
        counts = counts or (LocalCounts() if workers is None else workers.counts)
        self._admission = Admission(settings, counts)
        self._process_health = ProcessHealth(
            settings,
            self.pubsub,
            self.relay,
            self._installer,
            self.backlog,
            self.access,
            self._admission,
            leads=lambda: self._leads,
        )
        self._health = Health(self._process_health.reaches_database, delivery.emit_health)
        self.idle = Idle(hub, settings.idle_timeout, delivery.disconnect_idle, self._tables.has)
        restoring = Restoring(
            self.keeping,
            self.access.sessions,
            manager,
            hub,
            log,
            delivery,
            lambda sid, request: self._handlers.subscribing.prepare(sid, request, stored=True),
        )
        self.socketio = SocketIO(
            app,
            async_mode=green.LIBRARY,
            before_request=self._admission.answer,
            after_request=self._admission.answered,
            admits=self._admission.admits,
            client_manager=manager,
            lifecycle=ClientLifecycle(
                self._admission,
                self.access,
                self.limits,
                self.idle,
                self.pubsub,
                hub,
                delivery,
                self._health,
                self.keeping,
                restoring,
                self._tables,
                self.start,
            ),
            cors_allowed_origins=self._admission.allows_origin,
            client_address=self._admission.address,
            new_session_id=None if self._router is None else self._router.new_session_id,
            is_session_id=(lambda text: False) if self._router is None else self._router.is_session_id,
            binary=binary,
            max_http_buffer_size=max_bytes,
            ping_interval=settings.ping_interval,
            ping_timeout=settings.ping_timeout,
            send_buffer_bytes=settings.send_buffer_bytes,
            max_connections=settings.max_connections,
            counts=counts,
            connect_timeout=settings.connect_timeout,
        )
        server = self.socketio.server
        self._handlers = Handlers(
            server,
            self.pubsub,
            hub,
            log,
            delivery,
            self.access,
            self._admission,
            self.limits,
            self.keeping,
            self._tables,
        )
        self._handlers.register(test=test)

        # After `delivery`, which expects to be the first receiver of messages.
        self.streams = Streams(
            server.eio,
            self.pubsub,
            hub,
            log,
            self.access,
            self.limits,
            settings.send_buffer_bytes,
            settings.ping_interval + settings.ping_timeout,
        )
        self.gauges = Gauges(
            server,
            self.streams.connections,
            self.pubsub,
            hub,
            log,
            self.relay,
            self.backlog,
            self.health,
            lambda: cluster.workers_listener or self.pubsub.listener,
        )
        self._node_metrics = None
        if workers is not None and settings.metrics_token is not None:
            self._node_metrics = NodeMetrics(workers.node, workers.peers, self.gauges.collect)
        app.register_blueprint(
            create_blueprint(
                self.readiness,
                (self._node_metrics or self.gauges).render,
                enable_test_page=enable_test_page,
                metrics_token=settings.metrics_token,
            )
        )
        if settings.http_api:
            tickets = Tickets(self.sealing)
            api = Api(settings, self.pubsub, self.access, self._admission, self.streams, tickets, self.start, max_bytes)
            app.register_blueprint(create_api_blueprint(api))
        app.extensions["socketio_pg"] = self

    # -- running -------------------------------------------------------------------------------------------------------

    def start(self, addresses: Sequence[str] = ()) -> None:
        """Connect to PostgreSQL in the background. The first client calls it too. Call it after a fork, not before.

        ``addresses``, on which the server listens, are for the warning about a server without authentication.
        Raises :class:`ConfigurationError` when MESSAGE_QUEUE is set and there is no cluster key.
        """
        if self._started:
            return
        self._started = True
        try:
            self._require_key()
        except ConfigurationError:
            self._started = False
            raise
        if self.workers is not None:
            self.workers.start()
        if self.workers is None or self.workers.node.slot == 0:  # the others would say the same
            self._log_library()
            self.access.authenticator.warn_if_open(" or ".join(addresses) or "this server")
        self.socketio.server.initialize_manager()
        self.pubsub.start()
        self.access.start()
        self._tables.start()
        self.idle.start()
        self._health.start()
        if self.settings.metrics_token is not None:
            self.gauges.start()
        if self.workers is None:
            self._lead(True)
        else:
            self.workers.election.start()

    @property
    def _leads(self) -> bool:
        """Whether this process has the parts of which a node has one."""
        return self.workers is None or self.workers.election.leading

    def _lead(self, leading: bool) -> None:
        """Start or stop the parts of which a node has one, whatever the number of its workers."""
        if leading:
            self.backlog.start()
            # The relay waits for the schema, whether this node or an operator installs it.
            self.relay.start()
            if self.settings.auto_init:
                self._installer.start()
            if self._node_health is not None:
                self._node_health.start()
        else:
            if self._node_health is not None:
                self._node_health.stop()
            self._installer.stop()
            self.relay.stop()
            self.backlog.stop()
        self._listen_for_workers(leading)

    def _log_library(self) -> None:
        successor = green_library.RETIRING.get(green.LIBRARY)
        if successor is not None:
            logger.info(
                "running on %s, which is no longer developed: to switch, run pip install '%s', and start gunicorn with "
                "--worker-class %s, or the development server with %s=%s",
                green.LIBRARY, green_library.REQUIREMENTS[successor], successor, green_library.SETTING, successor,
            )  # fmt: skip

    def _require_key(self) -> None:
        """Raise :class:`ConfigurationError` if MESSAGE_QUEUE could not work. Without the database this is not known."""
        if self.settings.message_queue is None or self.settings.cluster_key:
            return
        try:
            if self.settings.auto_init:
                install(self.pubsub.database, self.settings.max_payload, again=False)
        except UntrustedSchemaError as error:
            raise ConfigurationError(f"MESSAGE_QUEUE is set, but {error.message}.") from None
        except DatabaseError as error:
            logger.warning("the log's schema could not be installed: %s", error)
        try:
            self.pubsub.keys.read()
        except ConfigurationError as error:
            raise ConfigurationError(f"MESSAGE_QUEUE is set, but {error}.") from None
        except DatabaseError as error:
            logger.warning("the cluster key cannot be read: %s; retrying", error)

    def run(self, on_listening: Callable[[], None] | None = None) -> None:
        """Serve on ``port`` until :meth:`shutdown`, with the WSGI server of the green-thread library: for development.

        ``on_listening`` is called once connections are accepted. Raises OSError when the port is taken.
        """
        listener = green.listen(self.settings.host, self.port)
        self.start([f"http://{config.authority(self.settings.host, self.port)}"])
        self._serving = green.spawn(green.serve_wsgi, listener, self.app, self.settings.max_connections)
        if on_listening is not None:
            on_listening()
        self._serving.wait()

    def shutdown(self) -> None:
        """Disconnect all clients, close the database's connections, and end :meth:`run`."""
        self.drain()
        self._health.stop()
        self.relay.stop()
        self._tables.stop()
        self.access.stop()
        self.idle.stop()
        self.streams.stop()
        self.gauges.stop()
        self.backlog.stop()
        self._listen_for_workers(False)
        if self._router is not None:
            self._router.stop()
        manager = self.socketio.server.manager
        if isinstance(manager, ClusterManager):
            manager.stop()
        self.pubsub.disconnect()
        if self.workers is not None:
            self.workers.stop()
        if self._serving is not None:
            green.stop_serving(self._serving)

    def serve_connections(self, worker: Any, *, hooked: bool) -> None:
        """Serve the connections of gunicorn's ``worker``. Accepts them also after a lack of descriptors.

        ``hooked``: gunicorn has a hook that must see each request.
        """
        application = None if hooked else middleware_of(worker.wsgi)
        front = Front(worker, application, None if self._router is None else self._router.route)
        if self._router is not None:
            self._router.serve_with(front)
            self._router.start()
        front.install()
        self._ending.start(worker.ppid)

    def limit_connections(self, most: int) -> bool:
        """Lower the maximum number of clients to ``most``. Return whether MAX_CONNECTIONS was higher."""
        engine = self.socketio.server.eio
        lowered = most < engine.max_connections
        engine.max_connections = min(engine.max_connections, most)
        return bool(lowered)

    def start_draining(self) -> None:
        """Call :meth:`drain` in a green thread; for signal handlers, which must not wait."""
        green.spawn(self.drain)

    def drain(self) -> None:
        """Refuse new clients, finish publishing, and disconnect the clients one after the other.

        Spreads the disconnects over ``DRAIN_SECONDS``, so that clients do not return to the next process all together,
        and disconnects them in a way that makes Socket.IO clients reconnect automatically.
        """
        if self._admission.draining:
            return
        self._admission.start_draining()
        try:
            self._drain()
        finally:
            self._drained.send()

    def _drain(self) -> None:
        if self.workers is not None and not self._leads:
            self.workers.election.resign()
        self._installer.stop()
        # Releases leadership first, so that another node, or another worker of this one, can take over.
        self.relay.stop()
        self.pubsub.flush(2.0)
        if self.workers is not None:
            self.workers.election.resign()
        # Closes Engine.IO's connection: a client that Socket.IO disconnects does not reconnect.
        sockets = [functools.partial(one.close, False, True) for one in self.socketio.server.eio.sockets.values()]
        enders: list[Callable[[], None]] = [*sockets, *self.streams.enders()]
        logger.info("draining %d clients", len(enders))
        random.shuffle(enders)
        pause = self.settings.drain_seconds / max(1, len(enders))
        behind = 0.0
        for end in enders:
            # Each has a green thread, because an application's disconnect handler may take long.
            green.run_soon(end)
            behind += pause
            if behind >= 0.01:
                green.sleep(behind)
                behind = 0.0
        self.keeping.stop()

    def wait_drained(self, seconds: float) -> None:
        """Wait at most ``seconds`` until a :meth:`drain` that has begun is complete."""
        if self._admission.draining:
            with contextlib.suppress(green.TimedOut):
                self._drained.wait(seconds)

    def keep_counters(self) -> None:
        """Keep the counters of this worker, which is about to end, for the metrics of its node."""
        if self._node_metrics is not None and self._started:
            self._node_metrics.keep()

    def health(self) -> dict[str, Problem | None]:
        """Return the problem of each part of this process, or None for a healthy part.

        The server can serve clients when all parts are healthy.
        """
        return self._process_health.parts()

    def readiness(self) -> dict[str, Problem | None]:
        """Start the server if it is not running, and return its :meth:`health`: that of all workers together."""
        if not self._admission.draining:
            self.start()
        return self.health() if self._node_health is None else self._node_health.parts()

    def _deliverer(self, sid: str) -> Delivery | Streams:
        return self.streams if self.streams.owns(sid) else self._delivery

    # -- clients -------------------------------------------------------------------------------------------------------

    def claims(self, sid: str) -> Claims | None:
        """Return the claims of the client ``sid``, None for an anonymous client. Works in connect handlers too."""
        session = self.access.sessions.get(sid)
        return None if session is None else session.claims
