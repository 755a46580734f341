"""Streams of Server-Sent Events as subscribers: begins and ends them, and delivers to them.

A stream subscribes to its channels when it begins, and to nothing later. Its cursor is a position of the log, one for
all of its channels: the id of an event is never beyond a message of any of them that was not sent before.
"""

import contextlib
import functools
import logging
import random
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from socketio_pg.access.access import Access
from socketio_pg.access.sessions import Session
from socketio_pg.access.tokens import Claims
from socketio_pg.core import green, metrics
from socketio_pg.core.errors import (
    FilterTooExpensiveError,
    ForbiddenError,
    RateLimitedError,
    SocketIOPGError,
    UnauthorizedError,
)
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.core.patterns import overlap
from socketio_pg.engine.handover import TakenOver
from socketio_pg.engine.server import Engine
from socketio_pg.engine.stream import StreamConnection
from socketio_pg.gateway.limits import ClientLimits
from socketio_pg.log.log import Log
from socketio_pg.log.replay import HeldReplay
from socketio_pg.log.starts import Snapshot, Start, wants_all
from socketio_pg.postgres.listener import NotifyGap
from socketio_pg.pubsub.hub import Hub
from socketio_pg.pubsub.matching import FilterCost
from socketio_pg.pubsub.pubsub import PubSub
from socketio_pg.streams.comments import Comments
from socketio_pg.streams.events import move_cursor, own_event, retry
from socketio_pg.streams.groups import Groups, Stream
from socketio_pg.streams.preparing import Found, Preparing, StreamRequest
from socketio_pg.streams.replays import StreamReplay, send_replay

logger = logging.getLogger("socketio_pg.streams")

#: Milliseconds after which a client connects again: after an end of the connection, and when it was told to wait. Each
#: client gets a random time from half of it to one and a half, so that not all of them return together.
RETRY, RETRY_LATER = 2_000, 6_000
#: The namespace of their sessions, which is none of Socket.IO's.
_NAMESPACE = "stream"
#: Their ids begin with this, those of Socket.IO clients do not.
_PREFIX = "stream:"


class Streams:
    """The streams of one server.

    ``send_buffer_bytes`` is the limit of one client's send buffer (SEND_BUFFER_BYTES). A client that accepts nothing
    for ``patience`` seconds is disconnected.
    """

    def __init__(
        self,
        engine: Engine,
        pubsub: PubSub,
        hub: Hub,
        log: Log,
        access: Access,
        limits: ClientLimits,
        send_buffer_bytes: int,
        patience: float,
    ) -> None:
        self._engine = engine
        self._pubsub = pubsub
        self._hub = hub
        self._log = log
        self._access = access
        self._limits = limits
        self._preparing = Preparing(pubsub, hub, log, access, limits)
        self._send_buffer_bytes = send_buffer_bytes
        self._page_bytes = send_buffer_bytes // 8
        self._patience = patience
        self._streams: dict[str, Stream] = {}
        self._groups = Groups(pubsub.matching)
        #: Streams that have just become live, and the position after which they are: a batch that other receivers are
        #: getting at the moment may end there, and is not for them.
        self._fresh: dict[Stream, int] = {}
        #: Warnings, by sid, for streams that have not begun yet.
        self._warnings: dict[str, bytes] = {}
        #: Whether messages of the log are being sent; streams whose cursor is to be moved after that.
        self._sending = False
        self._to_move: set[Stream] = set()
        self._comments = Comments(self._move, patience)
        pubsub.add_receiver(self)

    def __len__(self) -> int:
        return len(self._streams)

    @staticmethod
    def owns(sid: str) -> bool:
        """Return whether this is the id of a stream, also of one that has not begun yet."""
        return sid.startswith(_PREFIX)

    def connections(self) -> Iterator[StreamConnection]:
        """Yield the connections of all streams."""
        for stream in list(self._streams.values()):
            yield stream.connection

    # -- beginning -----------------------------------------------------------------------------------------------------

    def admit(self, claims: Claims | None, channels: Sequence[str]) -> int:
        """Return when a client may subscribe to ``channels``, with the mark of that decision for :meth:`open`.

        Waits, and raises as :meth:`Permissions.require`.
        """
        return self._preparing.admit(claims, channels)

    def open(
        self,
        request: StreamRequest,
        claims: Claims | None,
        mark: int,
        head: bytes,
        take: Callable[[], TakenOver],
        leave: Callable[[], None],
        address: str,
    ) -> tuple[TakenOver, StreamConnection]:
        """Begin a stream on the connection that ``take()`` returns, with the response's ``head``. Waits before that.

        ``leave()`` is called when the stream has ended; ``address`` is that of the client. Raises
        :class:`SocketIOPGError`: then the connection was not taken, and there is no stream.
        """
        if not self._engine.take_place():
            metrics.refused_connections.labels("too_many_connections").inc()
            raise RateLimitedError("too many connections")
        sid = f"{_PREFIX}{secrets.token_urlsafe(12)}"
        with contextlib.ExitStack() as undo:
            undo.callback(self._engine.free_place)
            self._hub.add(sid)
            self._access.sessions.set(sid, _NAMESPACE, claims)
            undo.callback(self._forget, sid)
            found = self._preparing.prepare(sid, request, claims, mark)
            # Nothing waits from here on: the position in `subscribed` is where the messages begin.
            taken = take()
            taken.detect_loss(self._patience)
            undo.pop_all()
        return taken, self._begin(sid, request, found, taken, head, leave, address)

    def _begin(
        self,
        sid: str,
        request: StreamRequest,
        found: Found,
        taken: TakenOver,
        head: bytes,
        leave: Callable[[], None],
        address: str,
    ) -> StreamConnection:
        connection = StreamConnection(taken.socket, lambda reason: self._lost(sid, reason), self._send_buffer_bytes)
        connection.cork()
        stream = Stream(sid, request.contents, connection, leave, address)
        self._streams[sid] = stream
        metrics.opened_connections.labels("stream").inc()
        connection.send(head + retry(jittered(RETRY)))
        replay = None
        if found.starts is not None:
            stream.awaits_live = True
            from_a_place = not isinstance(request.start, str) and wants_all(request.start)
            # Of the earliest ones it is not told which were deleted by hand, as of the newest ones.
            replay = self._hold(stream, found.starts, 0 if isinstance(request.start, str) else request.start)
            metrics.replays.labels("since" if from_a_place else "history").inc()
        position = self._log.position if found.starts is None else min(found.starts.values())
        self._say_subscribed(stream, request, found, position)
        self._groups.add(stream)
        if replay is None:
            self._fresh[stream] = position
            if request.start is not None or request.unusable is not None:
                self._say_live(stream)
        if sid in self._warnings:
            connection.send(self._warnings.pop(sid))
        connection.uncork()
        self._comments.add(stream)
        if replay is not None:
            self._start(stream, replay)
        return connection

    def _say_subscribed(self, stream: Stream, request: StreamRequest, found: Found, position: int) -> None:
        epoch = self._log.epoch
        where: dict[str, Any] = {} if epoch is None else {"epoch": epoch, "position": position}
        cursor = "" if epoch is None else f"{epoch}:{position}"
        if isinstance(request.start, Snapshot) and found.starts is not None:
            cursor = request.start.to_token()
        channels = stream.contents.channels
        body = {"channels": channels} | where | found.told | request.told
        stream.connection.send(own_event("subscribed", body, cursor))
        if found.told.get("recovered") is False:
            gap = {"channels": channels, "reason": found.told["reason"]} | where
            stream.connection.send(own_event("gap", gap, cursor))

    def _say_live(self, stream: Stream) -> None:
        """Tell a stream that it has all messages that were published before it began."""
        stream.awaits_live = False
        epoch, position = self._log.epoch, self._log.position
        body: dict[str, Any] = {"channels": stream.contents.channels}
        if epoch is None:
            stream.connection.send(own_event("live", body))
        else:
            body |= {"epoch": epoch, "position": position}
            stream.connection.send(own_event("live", body, f"{epoch}:{position}"))

    # -- replays -------------------------------------------------------------------------------------------------------

    def _hold(self, stream: Stream, starts: dict[str, int], start: Start = None) -> HeldReplay:
        """Hold live messages of the log back from a stream, and return its replay.

        ``start``: see :meth:`Log.replay`.
        """
        receiver = StreamReplay(
            stream,
            self._pubsub.matching,
            self._log.epoch,
            functools.partial(self._spend, stream),
            self._page_bytes,
        )

        def caught_up() -> None:
            self._fresh[stream] = self._log.position
            if stream.awaits_live:
                self._say_live(stream)

        held = self._pubsub.holds.hold_together(stream.sid, starts, receiver, start, on_release=caught_up)
        receiver.skipping = held.replay.skipping
        return held

    def _start(self, stream: Stream, replay: HeldReplay) -> None:
        """Send a replay, in the place of one that is no longer held: a stream has one green thread for them."""
        running, stream.replay = stream.replay is not None, replay
        if not running:
            green.run_soon(self._replay, stream)

    def _replay(self, stream: Stream) -> None:
        try:
            while stream.replay is not None:
                replay = stream.replay
                send_replay(stream, replay, self._page_bytes)
                if stream.replay is replay:
                    stream.replay = None
        except Exception:  # a bug; the client would wait for messages that the failed replay holds back
            logger.exception("a replay of a stream failed")
            self._fail(stream, SocketIOPGError("the server failed to handle this"))

    def _hold_lagging(self, blocks: Any, first: int) -> None:
        """Replay to clients that read too slowly, at their own speed, instead of disconnecting them as with NOTIFY."""
        most = self._send_buffer_bytes // 4
        for group in blocks:
            lagging = [one for one in group.members.values() if one.connection.buffered > most]
            for stream in lagging:
                if not self._is_held(stream) and self._fresh.get(stream, 0) < first:
                    replay = self._hold(stream, dict.fromkeys(stream.contents.channels, first - 1))
                    metrics.replays.labels("lagging").inc()
                    self._start(stream, replay)

    def _is_held(self, stream: Stream) -> bool:
        return self._hub.held_by(stream.sid, stream.contents.channels[0]) is not None

    # -- messages and gaps, from `pubsub` ------------------------------------------------------------------------------

    def receive_messages(self, messages: Sequence[EncodedMessage]) -> None:
        """Send messages to the streams that have subscribed to their channels. Yields in between."""
        if not self._streams:
            return
        epoch, last = self._log.epoch, messages[-1].position
        blocks = self._groups.choose(messages, epoch)
        if last is None:
            self._groups.send(blocks)
            return
        assert messages[0].position is not None
        self._hold_lagging(blocks, messages[0].position)
        skipped = {sid for group in blocks for sid in self._hub.held(group.contents.channels[0])}
        # Streams that became live while other receivers got this batch: it ends where they begin.
        skipped |= {stream.sid for stream, position in self._fresh.items() if position >= last}
        self._fresh.clear()
        self._sending = True
        try:
            self._groups.send(blocks, skipped)
        finally:
            self._sending = False
        to_move, self._to_move = self._to_move, set()
        if to_move and epoch is not None and self._log.epoch == epoch:
            moved = move_cursor(f"{epoch}:{last}")
            for stream in to_move:
                if not self._is_held(stream):
                    stream.connection.send(moved)

    def charge(self, costs: Sequence[FilterCost]) -> None:
        """Count what filters have cost for the streams that have them."""
        for channel, filter, steps in costs:
            for stream in list(self._groups.of(channel)):
                if stream.contents.filter == filter:
                    self._spend(stream, steps)

    def _spend(self, stream: Stream, steps: int) -> None:
        if not self._limits.spend_on_filters(stream.sid, steps) and not stream.connection.closed:
            metrics.expensive_filters.inc()
            error = FilterTooExpensiveError("the filter costs too much computing time")
            green.run_soon(self._fail, stream, error)

    def receive_gap(self, gap: NotifyGap) -> None:
        """Report a gap of NOTIFY to the channel's streams."""
        body = gap.to_wire()
        channel = body.pop("channel")
        event = own_event("gap", {"channels": [channel]} | body)
        for stream in list(self._groups.of(channel)):
            stream.connection.send(event)

    def receive_log_gap(self, reason: str) -> None:
        """Report lost messages of the log to all streams."""
        epoch, position = self._log.epoch, self._log.position
        self._fresh.clear()
        self._to_move.clear()
        for stream in list(self._streams.values()):
            body = {"channels": stream.contents.channels, "reason": reason, "epoch": epoch, "position": position}
            stream.connection.send(own_event("gap", body, "" if epoch is None else f"{epoch}:{position}"))
            if stream.awaits_live and not self._is_held(stream):
                self._say_live(stream)

    def receive_trims(self, trims: Mapping[str, int]) -> None:
        """Report messages that rules have removed before they were delivered, to the streams of their channels."""
        epoch = self._log.epoch
        for channel, upto in trims.items():
            body = {"channels": [channel], "reason": "trimmed", "epoch": epoch, "position": upto}
            # Without an id: the messages of the stream's other channels up to there follow.
            event = own_event("gap", body)
            for stream in list(self._groups.of(channel)):
                stream.connection.send(event)

    def _move(self, stream: Stream) -> None:
        """Move the cursor of a quiet stream on, so that a later replay does not begin before the log does."""
        epoch, position = self._log.epoch, self._log.position
        if epoch is None or self._is_held(stream):
            return
        if self._sending or self._log.delivered != position:
            self._to_move.add(stream)  # its messages up to there may not have been sent
        else:
            stream.connection.send(move_cursor(f"{epoch}:{position}"))

    # -- ending --------------------------------------------------------------------------------------------------------

    def revoke(self, sid: str, channel: str) -> None:
        """End a stream that may no longer have one of its channels."""
        stream = self._streams.get(sid)
        if stream is None:  # it has not begun yet, and will not
            self._pubsub.leave(sid, channel)
        else:
            self._fail(stream, ForbiddenError("this client may no longer subscribe to the channel", channel=channel))

    def get(self, sid: str) -> Stream | None:
        """Return a stream; None if it has not begun yet, or has ended."""
        return self._streams.get(sid)

    def end_subscription(self, sid: str, channel: str, error: SocketIOPGError) -> bool:
        """End a stream that gets messages of a channel, which may be a pattern. Return whether it does."""
        stream = self._streams.get(sid)
        found = stream is not None and any(overlap(name, channel) for name in stream.contents.channels)
        if found and stream is not None:
            self._fail(stream, error)
        return found

    def disconnect(self, sid: str, error: SocketIOPGError) -> None:
        """End a stream, as the application or an operator says."""
        stream = self._streams.get(sid)
        if stream is None:  # it has not begun yet, and will not
            self._access.sessions.drop(sid)
        else:
            metrics.cut_off.labels(error.code).inc()
            self._fail(stream, error)

    def send(self, sid: str, event: str, body: dict[str, Any]) -> bool:
        """Send an event that is no message of a channel to a stream. Return whether the stream is open."""
        stream = self._streams.get(sid)
        if stream is not None:
            stream.connection.send(own_event(event, body))
        return stream is not None

    def emit_expiring(self, session: Session) -> None:
        """Warn a client that its token expires soon."""
        assert session.claims is not None
        warning = own_event("token_expiring", {"expires_at": session.claims.to_wire()["expires_at"]})
        stream = self._streams.get(session.sid)
        if stream is None:
            self._warnings[session.sid] = warning
        else:
            stream.connection.send(warning)

    def expire(self, session: Session) -> None:
        """End a stream whose token has expired."""
        stream = self._streams.get(session.sid)
        if stream is None:  # it has not begun yet, and will not
            self._access.sessions.drop(session.sid)
        else:
            metrics.cut_off.labels("expired").inc()
            self._fail(stream, UnauthorizedError("the token has expired"))

    def enders(self) -> list[Callable[[], None]]:
        """Return functions that end one stream each, for a drain: the client connects again, to another process."""
        return [functools.partial(self._end, stream, retry(jittered(RETRY))) for stream in list(self._streams.values())]

    def stop(self) -> None:
        """Stop to keep streams alive."""
        self._comments.stop()

    def _fail(self, stream: Stream, error: SocketIOPGError) -> None:
        """End a stream with the event `error`. The client learns from its next request whether that is for good."""
        self._end(stream, failure(error) + retry(jittered(RETRY)))

    def _end(self, stream: Stream, last: bytes) -> None:
        if stream.sid in self._streams:
            stream.connection.end(last)
            self._gone(stream)

    def _lost(self, sid: str, reason: str) -> None:
        # Called by the hub.
        stream = self._streams.get(sid)
        if stream is not None:
            if reason == "slow_consumer":
                metrics.cut_off.labels("slow_consumer").inc()
            green.run_soon(self._gone, stream)

    def _gone(self, stream: Stream) -> None:
        if self._streams.pop(stream.sid, None) is None:
            return
        self._groups.discard(stream)
        self._comments.discard(stream)
        self._fresh.pop(stream, None)
        self._to_move.discard(stream)
        self._forget(stream.sid)
        self._engine.free_place()
        stream.leave()

    def _forget(self, sid: str) -> None:
        self._warnings.pop(sid, None)
        self._access.sessions.drop(sid)
        self._limits.drop(sid)
        self._pubsub.drop(sid)


def failure(error: SocketIOPGError) -> bytes:
    """Return the event `error`."""
    return own_event("error", error.to_wire() | ({} if error.channel is None else {"channel": error.channel}))


def jittered(milliseconds: int) -> int:
    """Return a random time from half to one and a half of the given one."""
    return round(milliseconds * random.uniform(0.5, 1.5))
