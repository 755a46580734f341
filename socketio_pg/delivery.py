"""From the database to the clients: messages to Socket.IO rooms, gaps, and the replays of single subscriptions."""

from collections.abc import Sequence
from dataclasses import dataclass

from socketio_pg import green, metrics
from socketio_pg.errors import SocketIOPGError, UnauthorizedError
from socketio_pg.listener import Gap
from socketio_pg.messages import Message
from socketio_pg.protocol import Server
from socketio_pg.pubsub import PubSub
from socketio_pg.replay import Replay
from socketio_pg.sessions import Session
from socketio_pg.tokens import ANONYMOUS, Claims
from socketio_pg.version import __version__


class Delivery:
    """Brings what ``pubsub`` receives to the rooms of ``server``.

    ``send_buffer_bytes`` may wait for one client.
    """

    def __init__(self, server: Server, pubsub: PubSub, send_buffer_bytes: int) -> None:
        self._server = server
        self._pubsub = pubsub
        self._send_buffer_bytes = send_buffer_bytes
        pubsub.on_messages.append(self._emit_messages)
        pubsub.on_gap.append(self._emit_gap)
        pubsub.on_log_gap.append(self._emit_log_gap)

    def replay(self, sid: str, replay: Replay) -> None:
        """Run ``replay``, for which the subscription of ``sid`` is held. Waits until it is at an end."""
        hub, channel = self._pubsub.hub, replay.channel
        replay.run(
            _Client(self._server, sid, channel),
            lambda: hub.held_by(sid, channel) is replay,
            lambda: hub.release(sid, channel),
        )

    def leave(self, sid: str, channel: str) -> None:
        """End a subscription: nothing more of ``channel`` goes to ``sid``."""
        self._pubsub.leave(sid, channel)
        self._server.leave_room(sid, channel)

    def revoke(self, sid: str, channel: str) -> None:
        """End a subscription that is not allowed any more."""
        self.leave(sid, channel)
        self._server.emit("unsubscribed", {"channel": channel, "reason": "forbidden"}, to=sid)

    def emit_hello(self, sid: str, claims: Claims | None) -> None:
        """The first event of a client that was let in."""
        who = ANONYMOUS if claims is None else claims.to_wire()
        self._server.emit("server_hello", {"sid": sid, "version": __version__} | who, to=sid)

    def emit_expiring(self, session: Session) -> None:
        """The client's token ends soon."""
        assert session.claims is not None
        body = {"expires_at": session.claims.to_wire()["expires_at"]}
        self._server.emit("token_expiring", body, to=session.sid, namespace=session.namespace)

    def expire(self, session: Session) -> None:
        """The client's token has ended: disconnect it. Waits for the application's disconnect handlers."""
        self.cut_off(session.sid, UnauthorizedError("the token has expired"), "expired", session.namespace)

    def cut_off(self, sid: str, error: SocketIOPGError, reason: str, namespace: str = "/") -> None:
        """Tell a client why, and disconnect it. Waits for the application's disconnect handlers."""
        eio_sid = self._server.manager.eio_sid_from_sid(sid, namespace)
        socket = self._server.eio.sockets.get(eio_sid)
        if socket is not None and not socket.closed and not socket.closing:
            metrics.cut_off.labels(reason).inc()
            self._server.emit("error", error.to_wire(), to=sid, namespace=namespace)
            # At the level of Engine.IO: a client that can get itself another token comes back with it.
            socket.close(False, True)

    def _emit_messages(self, messages: Sequence[Message]) -> None:
        # A subscription that is being brought up to date gets what is live from the log as well.
        held = None
        if messages[0].position is not None:
            self._hold_lagging(messages)
            held = {channel: self._pubsub.hub.held(channel) for channel in {message.channel for message in messages}}
        self._server.manager.emit_in_order(
            "event", ((message.channel, message.to_wire()) for message in messages), skipped=held
        )

    def _hold_lagging(self, messages: Sequence[Message]) -> None:
        """Who does not keep up with the log is not cut off as with NOTIFY, but replayed to at its own speed."""
        assert messages[0].position is not None
        after = messages[0].position - 1
        for channel in {message.channel for message in messages}:
            for sid in self._server.manager.lagging(channel, self._send_buffer_bytes // 4):
                if self._pubsub.hub.is_subscribed(sid, channel) and not self._pubsub.hub.held_by(sid, channel):
                    replay = Replay(self._pubsub.follower, self._pubsub.history, channel, after)
                    self._pubsub.hub.hold(sid, channel, replay)
                    green.run_soon(self.replay, sid, replay)

    def _emit_gap(self, gap: Gap) -> None:
        self._server.emit("gap", gap.to_wire(), to=gap.channel)

    def _emit_log_gap(self, reason: str) -> None:
        follower = self._pubsub.follower
        for channel in self._pubsub.hub.channels():
            body = {"channel": channel, "reason": reason, "epoch": follower.epoch, "position": follower.position}
            self._server.emit("gap", body, to=channel)


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
