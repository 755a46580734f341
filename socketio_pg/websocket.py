"""SocketServer: starts, drains and stops the parts of a server."""

import contextlib
import functools
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

from flask import Flask

from socketio_pg.access.authentication import Authenticate
from socketio_pg.access.tokens import Claims
from socketio_pg.cluster.node import ClusterManager
from socketio_pg.control.control import DEFAULT_CONNECTIONS, Connections, Done
from socketio_pg.core import addresses, config, green, green_library, loading
from socketio_pg.core.errors import ConfigurationError, DatabaseError, UntrustedSchemaError
from socketio_pg.core.problems import Problem
from socketio_pg.engine import hosting
from socketio_pg.engine.front import Front
from socketio_pg.parts import Parts
from socketio_pg.postgres.schema import install
from socketio_pg.protocol.extension import middleware_of
from socketio_pg.workers.local_counts import Counts

logger = logging.getLogger("socketio_pg.websocket")


class SocketServer(Parts):
    """A Socket.IO server whose rooms are PostgreSQL channels, on ``app`` or on a new Flask application.

    ``dsn`` is the database's address; the default is that of the settings, then ``SQLALCHEMY_DATABASE_URI`` of ``app``.
    ``enable_test_page`` serves the playground at ``/socket-test``; ``test`` adds the event ``test_pub``. ``port`` is
    for :meth:`run`. ``settings`` has all other settings; the default is :func:`loading.load`.
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
        settings = settings or loading.load(file=None if dsn else loading.LOCAL_CFG)
        self.app = app = app if app is not None else Flask("socketio_pg", static_folder=None)
        self.port = port
        self._started = False
        self._drained = green.Event()
        self._serving: green.GreenThread | None = None
        super().__init__(settings, app, dsn, enable_test_page, test, authenticate, binary, counts)
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
        self.bus.start()
        self.access.start()
        self._tables.start()
        self.ephemeral.start()
        self.idle.start()
        self._health.start()
        if self.settings.metrics_token is not None:
            self.gauges.start()
        if self.inspector is not None:
            self.inspector.start()
        if self.workers is None:
            self._lead(True)
        else:
            self.workers.election.start()

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
        self.start([f"http://{addresses.authority(self.settings.host, self.port)}"])
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
        self.ephemeral.stop()
        self.access.stop()
        self.idle.stop()
        self.streams.stop()
        self.gauges.stop()
        if self.inspector is not None:
            self.inspector.stop()
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
        self.presence.drain(self.settings.drain_seconds)
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
        self.presence.stop()
        self.bus.stop()

    def wait_drained(self, seconds: float) -> None:
        """Wait at most ``seconds`` until a :meth:`drain` that has begun is complete."""
        if self._admission.draining:
            with contextlib.suppress(green.TimedOut):
                self._drained.wait(seconds)

    def keep_counters(self) -> None:
        """Keep the counters of this worker, which is about to end, for the metrics of its node."""
        if self._node_metrics is not None and self._started:
            self._node_metrics.keep()

    def readiness(self) -> dict[str, Problem | None]:
        """Start the server if it is not running, and return its :meth:`health`: that of all workers together."""
        if not self._admission.draining:
            self.start()
        return self.health() if self._node_health is None else self._node_health.parts()

    # -- control, on all nodes and workers: docs/identity.md -----------------------------------------------------------

    def connections(
        self, sub: str | None = None, limit: int = DEFAULT_CONNECTIONS, room: str | None = None
    ) -> Connections:
        """Return the newest connections of all clients, or of the user ``sub``, with their count.

        ``room``: only those in this Socket.IO room, in any namespace, or subscribed to the channel of this name.
        Waits for the answers of the other processes, as the methods below; they name those that did not answer. All of
        them raise :class:`InvalidRequestError` for invalid arguments.
        """
        self.start()
        return self.control.connections(sub, limit=limit, room=room)

    def disconnect_user(self, sub: str) -> Done:
        """Disconnect all connections of a user, so that stock clients do not come back by themselves."""
        self.start()
        return self.control.disconnect_user(sub)

    def disconnect_connection(self, sid: str) -> Done:
        """Disconnect one connection in the same way: of a Socket.IO client or a stream."""
        self.start()
        return self.control.disconnect_connection(sid)

    def unsubscribe_user(self, sub: str, channel: str) -> Done:
        """End the subscriptions of a user that get messages of ``channel``, which may be a pattern."""
        self.start()
        return self.control.unsubscribe_user(sub, channel)

    def send_to_user(self, sub: str, payload: object) -> Done:
        """Send the event `direct` with ``payload``, any JSON value, to all connections that a user has now."""
        self.start()
        return self.control.send_to_user(sub, payload)

    # -- presence, on all nodes: docs/presence.md ----------------------------------------------------------------------

    def members(self, channel: str) -> list[dict[str, Any]]:
        """Return the members of a channel: each with its ``key`` and its connections, ``metas``. May wait.

        Raises :class:`InvalidChannelError`, :class:`LogNotInstalledError` without the schema in the database, and
        :class:`DatabaseUnavailableError`.
        """
        self.start()
        return self.presence.members(channel)

    def count_members(self, channel: str) -> int:
        """Return the number of members of a channel. May wait, and raises as :meth:`members`."""
        self.start()
        return self.presence.count(channel)

    # -- clients -------------------------------------------------------------------------------------------------------

    def claims(self, sid: str) -> Claims | None:
        """Return the claims of the client ``sid``, None for an anonymous client. Works in connect handlers too."""
        session = self.access.sessions.get(sid)
        return None if session is None else session.claims
