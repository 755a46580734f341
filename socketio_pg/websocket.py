"""SocketServer: puts the parts of a server together, and starts, drains and stops them."""

import contextlib
import logging
import random
from collections.abc import Callable

from flask import Flask

from socketio_pg.access.access import Access
from socketio_pg.access.authentication import Authenticate
from socketio_pg.access.tokens import Claims
from socketio_pg.cluster.node import ClusterManager
from socketio_pg.cluster.select import Cluster
from socketio_pg.core import config, green
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.errors import DatabaseError
from socketio_pg.gateway.admission import Admission
from socketio_pg.gateway.delivery import Delivery
from socketio_pg.gateway.gauges import Gauges, Probe
from socketio_pg.gateway.handlers import Handlers
from socketio_pg.gateway.idle import Idle
from socketio_pg.gateway.lifecycle import ClientLifecycle
from socketio_pg.gateway.limits import ClientLimits
from socketio_pg.log.relay import Relay
from socketio_pg.postgres.schema import install
from socketio_pg.protocol.extension import SocketIO
from socketio_pg.pubsub.pubsub import PubSub
from socketio_pg.web.api import Api, create_api_blueprint
from socketio_pg.web.pages import create_blueprint

logger = logging.getLogger("socketio_pg.websocket")


class SocketServer:
    """A Socket.IO server whose rooms are PostgreSQL channels, on ``app`` or on a Flask application of its own.

    ``dsn`` is the database's address (without it: see :class:`PubSub`). ``enable_test_page`` serves the demo page at
    ``/socket-test``; ``test`` adds the event ``test_pub``. ``port`` is for :meth:`run`. ``settings`` gives everything
    else. ``authenticate(request, auth)`` says who a client is, in place of tokens: it gets Flask's request of the
    handshake, within its context, and what the client sent as ``auth``, and returns :class:`Claims` or None; it may
    raise :class:`UnauthorizedError`. ``binary``: events of your own take binary data; without it, a client that sends
    any is disconnected. ``.socketio`` is Flask-SocketIO, for handlers of one's own; ``.pubsub`` the
    :class:`PubSub` underneath.

    Raises :class:`ConfigurationError`, for instance when there is no database address.
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
    ) -> None:
        # A dsn given here leaves no reason to read the working folder's local.cfg.
        self.settings = settings = settings or config.load(local_cfg=None if dsn else config.LOCAL_CFG)
        self.app = app = app if app is not None else Flask("socketio_pg", static_folder=None)
        self.port = port
        self._started = False
        self._drained = green.Event()
        self._serving: green.GreenThread | None = None
        # A payload with its envelope; Engine.IO's default is 1,000,000.
        max_bytes = max(1_000_000, settings.max_payload) + 65_536

        cluster = Cluster(settings)
        self.pubsub = PubSub(
            dsn or settings.database_url or app.config.get("SQLALCHEMY_DATABASE_URI"),
            settings.listen_database_url,
            listener=cluster.create_listener,
            durable_channels=settings.durable_channels,
            max_payload=settings.max_payload,
        )
        database, hub, log = self.pubsub.database, self.pubsub.hub, self.pubsub.log
        self.relay = Relay(
            database,
            settings.log_retention,
            settings.log_max_messages,
            lambda: (log.position, len(hub)),
            cluster.create_forwarder(database),
        )
        # Whichever comes first: the relay may have looked when there was no log, and the listener not heard yet.
        self.pubsub.watch_log(self.relay.look)

        manager = cluster.create_manager(self.pubsub)
        delivery = Delivery(manager, self.pubsub, hub, log, settings.send_buffer_bytes)
        self.access = Access(
            settings,
            app,
            authenticate,
            self.pubsub,
            revoke=delivery.revoke,
            warn_expiring=delivery.emit_expiring,
            expire=delivery.expire,
        )
        self._admission = Admission(settings)
        self.limits = ClientLimits(settings)
        self.idle = Idle(hub, settings.idle_timeout, delivery.disconnect_idle)
        self.socketio = SocketIO(
            app,
            async_mode="eventlet",
            before_request=self._admission.answer,
            client_manager=manager,
            lifecycle=ClientLifecycle(
                self._admission, self.access, self.limits, self.idle, self.pubsub, hub, delivery, self.start
            ),
            cors_allowed_origins=self._admission.allows_origin,
            binary=binary,
            max_http_buffer_size=max_bytes,
            ping_interval=settings.ping_interval,
            ping_timeout=settings.ping_timeout,
            send_buffer_bytes=settings.send_buffer_bytes,
            max_connections=settings.max_connections,
            connect_timeout=settings.connect_timeout,
        )
        server = self.socketio.server
        Handlers(server, self.pubsub, hub, log, delivery, self.access, self.limits).register(test=test)

        self.gauges = Gauges(server, self.pubsub, hub, log, self.relay, Probe(database), self.health)
        app.register_blueprint(
            create_blueprint(
                self.readiness,
                self.gauges.render,
                enable_test_page=enable_test_page,
                metrics_token=settings.metrics_token,
            )
        )
        if settings.http_api:
            api = Api(settings, self.pubsub, self.access, self._admission, self.start, max_bytes)
            app.register_blueprint(create_api_blueprint(api))
        app.extensions["socketio_pg"] = self

    # -- running -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect to PostgreSQL in the background. Happens by itself with the first client; not before a fork."""
        if self._started:
            return
        self._started = True
        self.socketio.server.initialize_manager()
        self.pubsub.start()
        self.access.start()
        self.idle.start()
        if self.settings.metrics_token is not None:
            self.gauges.start()
        green.spawn(self._start_log)

    def _start_log(self) -> None:
        # It waits until there is a log, whoever installs it.
        self.relay.start()
        backoff = Backoff(0.5, 30.0)
        while self.settings.auto_init and not self._admission.draining:
            try:
                install(self.pubsub.database, self.settings.max_payload, again=False)
                self.relay.look()
                break
            except DatabaseError as error:
                logger.warning("the log's schema could not be installed: %s; retrying", error)
                green.sleep(backoff.next())

    def run(self, on_listening: Callable[[], None] | None = None) -> None:
        """Serve on ``port`` until :meth:`shutdown`, with eventlet's own WSGI server: for development and small things.

        ``on_listening`` is called once connections are accepted. Raises OSError when the port is taken.
        """
        listener = green.listen(self.settings.host, self.port)
        self.start()
        self._serving = green.spawn(green.serve_wsgi, listener, self.app, self.settings.max_connections)
        if on_listening is not None:
            on_listening()
        self._serving.wait()

    def shutdown(self) -> None:
        """Disconnect all clients, close the database's connections, and end :meth:`run`."""
        self.drain()
        self.relay.stop()
        self.access.stop()
        self.idle.stop()
        self.gauges.stop()
        manager = self.socketio.server.manager
        if isinstance(manager, ClusterManager):
            manager.stop()
        self.pubsub.disconnect()
        if self._serving is not None:
            green.stop_serving(self._serving)

    def limit_connections(self, most: int) -> bool:
        """Take at most ``most`` clients; whether that is less than MAX_CONNECTIONS."""
        engine = self.socketio.server.eio
        lowered = most < engine.max_connections
        engine.max_connections = min(engine.max_connections, most)
        return bool(lowered)

    def start_draining(self) -> None:
        """:meth:`drain` in a green thread; for signal handlers, which must not wait."""
        green.spawn(self.drain)

    def drain(self) -> None:
        """Take no new clients, finish what is being published, and disconnect the clients one after the other.

        They are disconnected over ``DRAIN_SECONDS``, so that they do not come back to the next process all at once,
        and in a way that makes Socket.IO clients reconnect by themselves.
        """
        if self._admission.draining:
            return
        self._admission.start_draining()
        try:
            self._drain()
        finally:
            self._drained.send()

    def _drain(self) -> None:
        # Another node leads while we take our leave.
        self.relay.stop()
        self.pubsub.flush(2.0)
        sockets = list(self.socketio.server.eio.sockets.values())
        logger.info("draining %d clients", len(sockets))
        random.shuffle(sockets)
        pause = self.settings.drain_seconds / max(1, len(sockets))
        behind = 0.0
        for socket in sockets:
            # At the level of Engine.IO: told to by Socket.IO, a client would stay away. In a green thread of its own:
            # an application's disconnect handler may take its time.
            green.run_soon(socket.close, False, True)
            behind += pause
            if behind >= 0.01:
                green.sleep(behind)
                behind = 0.0

    def wait_drained(self, seconds: float) -> None:
        """Wait until :meth:`drain`, where it has begun, is complete, ``seconds`` at most."""
        if self._admission.draining:
            with contextlib.suppress(green.TimedOut):
                self._drained.wait(seconds)

    def health(self) -> dict[str, str | None]:
        """What is wrong with each part of the server, in a sentence for the operator; None for nothing.

        Clients can be served when all are in order.
        """
        # Proven at each connecting by a NOTIFY of our own, on a channel whose name nobody else can know.
        listening = self.pubsub.problem
        if listening is not None and self.settings.listen == "leader" and self.relay.problem is not None:
            listening = f"{listening}; this node cannot listen for them: {self.relay.problem}"
        installed = self.pubsub.log.installed
        missing = self.settings.auto_init and not installed
        return {
            "process": "shutting down" if self._admission.draining else None,
            "listener": listening,
            # Whether there is one is found out by listening. Without it there still is NOTIFY.
            "log": "the log is being installed" if missing and listening is None else None,
            "relay": self.relay.problem if installed and not self._admission.draining else None,
            "permissions": self.access.problem,
        }

    def readiness(self) -> dict[str, str | None]:
        """The same, and a server that nobody has started yet is on its way then."""
        if not self._admission.draining:
            self.start()
        return self.health()

    # -- clients -------------------------------------------------------------------------------------------------------

    def claims(self, sid: str) -> Claims | None:
        """Who the client ``sid`` is, also in an application's own connect handler; None for an anonymous one."""
        session = self.access.sessions.get(sid)
        return None if session is None else session.claims
