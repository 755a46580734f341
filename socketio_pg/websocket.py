"""SocketServer: puts the parts of a server together, and starts, drains and stops them."""

import contextlib
import logging
import random
from collections.abc import Callable
from typing import Any

from flask import Flask

from socketio_pg.access.access import Access
from socketio_pg.access.authentication import Authenticate
from socketio_pg.access.tokens import Claims
from socketio_pg.cluster.node import ClusterManager
from socketio_pg.cluster.remote_listener import RemoteListener
from socketio_pg.cluster.select import create_manager, listen_for_others
from socketio_pg.core import config, green
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.errors import DatabaseError, IdleTimeoutError, RateLimitedError
from socketio_pg.gateway.admission import Door
from socketio_pg.gateway.delivery import Delivery
from socketio_pg.gateway.gauges import Gauges, Probe
from socketio_pg.gateway.handlers import Handlers
from socketio_pg.gateway.idle import Idle
from socketio_pg.gateway.limits import ClientLimits
from socketio_pg.log.relay import Relay
from socketio_pg.postgres.listener import Listener
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
        # With an address of its own, a local.cfg of somebody's own is not ours to read.
        self.settings = settings or config.load(local_cfg=None if dsn else config.LOCAL_CFG)
        self.app = app if app is not None else Flask("socketio_pg", static_folder=None)
        self.port = port
        listener = RemoteListener if self.settings.listen == "leader" else Listener
        self.pubsub = PubSub(
            dsn or self.settings.database_url or self.app.config.get("SQLALCHEMY_DATABASE_URI"),
            self.settings.listen_database_url,
            listener=listener,
            durable_channels=self.settings.durable_channels,
            max_payload=self.settings.max_payload,
        )
        hub, log = self.pubsub.hub, self.pubsub.log
        self.relay = Relay(
            self.pubsub.database,
            self.settings.log_retention,
            self.settings.log_max_messages,
            lambda: (log.position, len(hub)),
        )
        manager = create_manager(self.settings, self.pubsub)
        listen_for_others(manager, self.pubsub, self.relay)
        # Whichever comes first: the relay may have looked when there was no log, and the listener not heard yet.
        self.pubsub.watch_log(self.relay.look)
        # A payload with its envelope; engine.io's default is 1,000,000.
        most_bytes = max(1_000_000, self.settings.max_payload) + 65_536
        self.socketio = SocketIO(
            async_mode="eventlet",
            cors_allowed_origins=self._allows_origin,
            ping_interval=self.settings.ping_interval,
            ping_timeout=self.settings.ping_timeout,
            send_buffer_bytes=self.settings.send_buffer_bytes,
            max_connections=self.settings.max_connections,
            connect_timeout=self.settings.connect_timeout,
            binary=binary,
            max_http_buffer_size=most_bytes,
            client_manager=manager,
        )
        self.socketio.init_app(self.app)
        self._door = Door(self.settings, self.socketio.sockio_mw.engineio_path, lambda: self._draining)
        self.socketio.before_request = self._door.answer
        server = self.socketio.server
        server.on_opened = self._door.opened
        server.on_closed = self._door.closed
        delivery = Delivery(manager, self.pubsub, hub, log, self.settings.send_buffer_bytes)
        self.access = Access(
            self.settings,
            self.app,
            authenticate,
            self.pubsub,
            revoke=delivery.revoke,
            warn_expiring=delivery.emit_expiring,
            expire=delivery.expire,
        )
        server.identify = self.access.authenticator.identify
        server.on_identified = self.access.sessions.set
        server.on_connected = self._connected
        server.on_disconnected = self._disconnected
        server.before_event = self._before_event
        self._delivery = delivery
        self.limits = ClientLimits(self.settings)
        self.idle = Idle(
            hub,
            self.settings.idle_timeout,
            lambda sid: delivery.cut_off(sid, IdleTimeoutError("nothing was heard for too long"), "idle_timeout"),
        )
        Handlers(server, self.pubsub, hub, log, delivery, self.access, self.limits).register(test=test)
        self.gauges = Gauges(server, self.pubsub, hub, log, self.relay, Probe(self.pubsub.database), self.parts)
        self.app.register_blueprint(
            create_blueprint(
                self.readiness,
                self.gauges.render,
                enable_test_page=enable_test_page,
                metrics_token=self.settings.metrics_token,
            )
        )
        if self.settings.http_api:
            api = Api(self.settings, self.pubsub, self.access, self._door, self.start, most_bytes)
            self.app.register_blueprint(create_api_blueprint(api))
        self.app.extensions["socketio_pg"] = self
        self._started = self._draining = False
        self._drained = green.Event()
        self._serving: green.GreenThread | None = None

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
        while self.settings.auto_init and not self._draining:
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
        if self._draining:
            return
        self._draining = True
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
        if self._draining:
            with contextlib.suppress(green.TimedOut):
                self._drained.wait(seconds)

    def parts(self) -> dict[str, str | None]:
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
            "process": "shutting down" if self._draining else None,
            "listener": listening,
            # Whether there is one is found out by listening. Without it there still is NOTIFY.
            "log": "the log is being installed" if missing and listening is None else None,
            "relay": self.relay.problem if installed and not self._draining else None,
            "permissions": self.access.problem,
        }

    def readiness(self) -> dict[str, str | None]:
        """The same, and a server that nobody has started yet is on its way then."""
        if not self._draining:
            self.start()
        return self.parts()

    # -- clients -------------------------------------------------------------------------------------------------------

    def claims(self, sid: str) -> Claims | None:
        """Who the client ``sid`` is, also in an application's own connect handler; None for an anonymous one."""
        session = self.access.sessions.get(sid)
        return None if session is None else session.claims

    def _connected(self, sid: str) -> None:
        self.start()
        self.pubsub.hub.add(sid)
        self.idle.heard(sid)
        self._delivery.emit_hello(sid, self.claims(sid))

    def _disconnected(self, sid: str) -> None:
        self.access.sessions.drop(sid)
        self.limits.drop(sid)
        self.idle.drop(sid)
        self.pubsub.drop(sid)

    def _before_event(self, sid: str, size: int) -> None:
        self.idle.heard(sid)
        try:
            self.limits.check_event(sid, size)
        except RateLimitedError as error:
            if error.cut_off:
                green.run_soon(self._delivery.cut_off, sid, error, "rate_limited")
            raise

    def _allows_origin(self, origin: str | None, environ: dict[str, Any]) -> bool:
        return self._door.allows_origin(origin, environ)
