"""SocketServer: Socket.IO events ↔ PubSub. What each event means is in docs/protocol.md."""

import contextlib
import functools
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from flask import Flask

from socketio_pg import config, green
from socketio_pg.channels import validate_channel
from socketio_pg.errors import DatabaseError, InvalidChannelError, InvalidRequestError, SocketIOPGError
from socketio_pg.hub import UnknownSubscriberError
from socketio_pg.listener import Gap
from socketio_pg.messages import Message
from socketio_pg.protocol import Answer, Server, SocketIO, showable
from socketio_pg.pubsub import PubSub
from socketio_pg.relay import Relay
from socketio_pg.replay import Replay, find_start, requested_start
from socketio_pg.schema import install
from socketio_pg.version import __version__
from socketio_pg.web import create_blueprint

logger = logging.getLogger("socketio_pg.websocket")

Handler = Callable[[str, dict[str, Any]], Answer]


class SocketServer:
    """A Socket.IO server whose rooms are PostgreSQL channels, on ``app`` or on a Flask application of its own.

    ``dsn`` is the database's address (without it: see :class:`PubSub`). ``enable_test_page`` serves the demo page at
    ``/socket-test``; ``test`` adds the event ``test_pub``. ``port`` is for :meth:`run`. ``settings`` gives everything
    else. ``.socketio`` is Flask-SocketIO, for handlers of one's own; ``.pubsub`` the :class:`PubSub` underneath.

    Raises :class:`ConfigurationError` when there is no database address.
    """

    #: Seconds between the last close frame and cutting the TCP connections.
    farewell = 0.25

    def __init__(
        self,
        app: Flask | None = None,
        dsn: str | None = None,
        enable_test_page: bool = False,
        port: int = 3030,
        test: bool = False,
        settings: config.Settings | None = None,
    ) -> None:
        # With an address of its own, a local.cfg of somebody's own is not ours to read.
        self.settings = settings or config.load(local_cfg=None if dsn else config.LOCAL_CFG)
        self.app = app if app is not None else Flask("socketio_pg", static_folder=None)
        self.port = port
        self.pubsub = PubSub(self.app, dsn or self.settings.database_url, self.settings.listen_database_url)
        self.pubsub.on_messages.append(self._emit_messages)
        self.pubsub.on_gap.append(self._emit_gap)
        self.pubsub.on_log_gap.append(self._emit_log_gap)
        self.pubsub.durable_channels = self.settings.durable_channels
        self.pubsub.max_payload = self.settings.max_payload
        self.relay = Relay(
            self.pubsub.database,
            self.settings.log_retention,
            self.settings.log_max_messages,
            lambda: (self.pubsub.follower.position, len(self.pubsub.hub)),
        )
        # Whichever comes first: the relay may have looked when there was no log, and the listener not heard yet.
        self.pubsub.on_log_changed.append(self.relay.look)
        self.pubsub.follower.on_found = self.relay.look
        self.socketio = SocketIO(
            async_mode="eventlet",
            cors_allowed_origins=_engineio_origins(self.settings.cors_allowed_origins),
            ping_interval=self.settings.ping_interval,
            ping_timeout=self.settings.ping_timeout,
            send_buffer_bytes=self.settings.send_buffer_bytes,
            max_connections=self.settings.max_connections,
            # A payload with its envelope; engine.io's default is 1,000,000.
            max_http_buffer_size=max(1_000_000, self.settings.max_payload) + 65_536,
        )
        self.socketio.before_request = self._refuse_when_draining
        self.socketio.init_app(self.app)
        self.socketio.server.on_connected = self._connected
        self.socketio.server.on_disconnected = self.pubsub.drop
        handlers: dict[str, Handler] = {
            "subscribe": self._subscribe,
            "unsubscribe": self._unsubscribe,
            "publish": self._publish,
        }
        if test:
            handlers["test_pub"] = self._publish
        for event, handler in handlers.items():
            self.socketio.server.on(event, _with_object(handler))
        self.app.register_blueprint(create_blueprint(self.readiness, enable_test_page=enable_test_page))
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
        self.pubsub.start()
        green.spawn(self._start_log)

    def _start_log(self) -> None:
        # It waits until there is a log, whoever installs it.
        self.relay.start()
        delay = 0.5
        while self.settings.auto_init and not self._draining:
            try:
                install(self.pubsub.database, self.settings.max_payload, again=False)
                self.relay.look()
                break
            except DatabaseError as error:
                logger.warning("the log's schema could not be installed: %s; retrying", error)
                green.sleep(delay)
                delay = min(delay * 2, 30.0)

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
        self.pubsub.publisher.flush(2.0)
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
        # Engine.IO's thread goes on reading until the client closes the TCP connection too; not all do.
        green.sleep(self.farewell)
        for thread in list(self.socketio.sockio_mw.websockets):
            green.throw(thread, ConnectionResetError("drained"))

    def wait_drained(self, seconds: float) -> None:
        """Wait until :meth:`drain`, where it has begun, is complete, ``seconds`` at most."""
        if self._draining:
            with contextlib.suppress(green.TimedOut):
                self._drained.wait(seconds)

    def readiness(self) -> str | None:
        """None when clients can be served, otherwise what is missing, in a sentence for the operator."""
        if self._draining:
            return "shutting down"
        self.start()
        if self.pubsub.listener.problem is None and self.settings.auto_init and not self.pubsub.follower.installed:
            return "the log is being installed"
        return self.pubsub.listener.problem

    # -- events from clients -------------------------------------------------------------------------------------------

    def _connected(self, sid: str, environ: dict[str, Any]) -> None:
        self.start()
        self.pubsub.hub.add(sid)
        self._emit("server_hello", {"client": None, "sid": sid, "version": __version__}, sid)

    def _subscribe(self, sid: str, request: dict[str, Any]) -> Answer:
        channel = validate_channel(request.get("channel"))
        start = requested_start(request)
        if self.socketio.server.manager.is_sid_room("/", channel):
            raise InvalidChannelError("this name is the id of a client", channel=channel)
        hub, follower = self.pubsub.hub, self.pubsub.follower
        new = not hub.is_subscribed(sid, channel)
        self.pubsub.join(sid, channel)
        try:
            after, recovered = find_start(follower, self.pubsub.history, channel, start)
        except BaseException:
            if new:
                self.pubsub.leave(sid, channel)
            raise
        # The client may have left, or changed its mind, meanwhile. From here on nothing waits.
        if not hub.is_subscribed(sid, channel):
            raise InvalidRequestError("unsubscribed before the subscription was complete", channel=channel)
        live = channel in self.socketio.server.rooms(sid)
        self.socketio.server.enter_room(sid, channel)
        if follower.epoch is None:
            return Answer("subscribed", {"channel": channel} | recovered)
        then = None
        if after is not None:
            replay = Replay(follower, self.pubsub.history, channel, after)
            hub.hold(sid, channel, replay)
            self.socketio.server.manager.pass_by(sid, channel)
            then = functools.partial(self._replay, sid, replay)
        body = {"channel": channel, "epoch": follower.epoch, "position": self._position(sid, channel, live)}
        return Answer("subscribed", body | recovered, then)

    def _position(self, sid: str, channel: str, live: bool) -> int:
        """After which position the messages of a subscription will follow from now on."""
        replay = self.pubsub.hub.held_by(sid, channel)
        if isinstance(replay, Replay):
            return replay.position
        # What is being sent to the room just now goes to those who were in it before.
        return self.pubsub.follower.delivered if live else self.pubsub.follower.position

    def _replay(self, sid: str, replay: Replay) -> None:
        hub, channel = self.pubsub.hub, replay.channel
        replay.run(
            _Client(self.socketio.server, sid, channel),
            lambda: hub.held_by(sid, channel) is replay,
            lambda: hub.release(sid, channel),
        )

    def _unsubscribe(self, sid: str, request: dict[str, Any]) -> Answer:
        channel = validate_channel(request.get("channel"))
        self.pubsub.leave(sid, channel)
        self.socketio.server.leave_room(sid, channel)
        return Answer("unsubscribed", {"channel": channel})

    def _publish(self, sid: str, request: dict[str, Any]) -> Answer:
        channel = validate_channel(request.get("channel"))
        if "payload" not in request:
            raise InvalidRequestError("payload is missing", channel=channel)
        durable = request.get("durable")
        if durable is not None and not isinstance(durable, bool):
            raise InvalidRequestError("durable must be true or false", channel=channel)
        self.pubsub.publish(channel, request["payload"], durable)
        return Answer("published", {"channel": channel})

    # -- from the database to the clients ------------------------------------------------------------------------------

    def _emit_messages(self, messages: Sequence[Message]) -> None:
        # A subscription that is being brought up to date gets what is live from the log as well.
        held = None
        if messages[0].position is not None:
            self._hold_lagging(messages)
            held = {channel: self.pubsub.hub.held(channel) for channel in {message.channel for message in messages}}
        self.socketio.server.manager.emit_in_order(
            "event", ((message.channel, message.to_wire()) for message in messages), skipped=held
        )

    def _hold_lagging(self, messages: Sequence[Message]) -> None:
        """Who does not keep up with the log is not cut off as with NOTIFY, but replayed to at its own speed."""
        assert messages[0].position is not None
        after = messages[0].position - 1
        for channel in {message.channel for message in messages}:
            for sid in self.socketio.server.manager.lagging(channel, self.settings.send_buffer_bytes // 4):
                if self.pubsub.hub.is_subscribed(sid, channel) and not self.pubsub.hub.held_by(sid, channel):
                    replay = Replay(self.pubsub.follower, self.pubsub.history, channel, after)
                    self.pubsub.hub.hold(sid, channel, replay)
                    green.run_soon(self._replay, sid, replay)

    def _emit_gap(self, gap: Gap) -> None:
        self._emit("gap", gap.to_wire(), gap.channel)

    def _emit_log_gap(self, reason: str) -> None:
        follower = self.pubsub.follower
        for channel in self.pubsub.hub.channels():
            body = {"channel": channel, "reason": reason, "epoch": follower.epoch, "position": follower.position}
            self._emit("gap", body, channel)

    def _emit(self, event: str, argument: dict[str, Any], room: str) -> None:
        self.socketio.server.emit(event, argument, to=room)

    def _refuse_when_draining(self, start_response: Callable[..., Any]) -> Iterable[bytes] | None:
        if not self._draining:
            return None
        headers = [("Content-Type", "text/plain"), ("Connection", "close"), ("Retry-After", "1")]
        start_response("503 SERVICE UNAVAILABLE", headers)
        return [b"shutting down"]


@dataclass(frozen=True, slots=True)
class _Client:
    """The receiver of a replay: one client's subscription."""

    server: Server
    sid: str
    channel: str

    def send(self, messages: Sequence[Message]) -> None:
        self.server.manager.emit_in_order(
            "event", ((self.sid, message.to_wire() | {"replayed": True}) for message in messages)
        )

    def wait_sent(self) -> bool:
        socket = self.server.eio.sockets.get(self.server.manager.eio_sid_from_sid(self.sid, "/"))
        return socket is not None and bool(socket.wait_sent())

    def gap(self, reason: str, epoch: str, position: int) -> None:
        body = {"channel": self.channel, "reason": reason, "epoch": epoch, "position": position}
        self.server.emit("gap", body, to=self.sid)


def _with_object(handler: Handler) -> Callable[..., Answer]:
    """``handler`` as an event handler: checks that the client sent one object."""

    def handle(sid: str, *arguments: Any) -> Answer:
        if len(arguments) != 1 or not isinstance(arguments[0], dict):
            raise InvalidRequestError("this event takes one object")
        request = arguments[0]
        try:
            return handler(sid, request)
        except UnknownSubscriberError:
            raise InvalidRequestError("the client has left") from None
        except SocketIOPGError as error:
            if error.channel is None and isinstance(request.get("channel"), str):
                error.channel = showable(request["channel"]) or None
            raise

    return handle


def _engineio_origins(origins: tuple[str, ...] | None) -> Any:
    if origins is None:
        return None  # engine.io's word for: the same origin only
    return "*" if "*" in origins else list(origins)
