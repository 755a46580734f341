"""Delivers to the clients: messages to Socket.IO rooms, gaps, and replays to single subscriptions."""

import functools
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import orjson

from socketio_pg.access.channel_rights import ChannelRights
from socketio_pg.access.sessions import Session
from socketio_pg.access.tokens import ANONYMOUS, Claims
from socketio_pg.core import green, metrics
from socketio_pg.core.errors import (
    EndedByServerError,
    FilterTooExpensiveError,
    ForbiddenError,
    IdleTimeoutError,
    SocketIOPGError,
    UnauthorizedError,
)
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.core.patterns import is_pattern, named, overlap
from socketio_pg.gateway.conflating import Conflating
from socketio_pg.gateway.limits import ClientLimits
from socketio_pg.gateway.pattern_delivery import PatternDelivery
from socketio_pg.gateway.presence_rooms import PresenceRooms
from socketio_pg.gateway.replay_client import ReplayClient, ReplayTools
from socketio_pg.gateway.replay_packets import ReplayPackets
from socketio_pg.gateway.replays import Replays
from socketio_pg.gateway.rooms import of_strings, room_of
from socketio_pg.log.log import Log
from socketio_pg.log.replay import Replay
from socketio_pg.log.starts import Start, wants_all
from socketio_pg.postgres.listener import NotifyGap
from socketio_pg.protocol.fanout import Manager
from socketio_pg.protocol.offsets import Cursor
from socketio_pg.pubsub.filters import Filter
from socketio_pg.pubsub.hub import Hub
from socketio_pg.pubsub.matching import FilterCost
from socketio_pg.pubsub.pubsub import PubSub
from socketio_pg.recovery.catching_up import CatchingUp, Place
from socketio_pg.recovery.keeping import Keeping
from socketio_pg.version import __version__

logger = logging.getLogger("socketio_pg.delivery")

#: What clients cannot find out otherwise, for `server_hello`: see docs/protocol.md.
FEATURES = ("publish_id", "live", "patterns", "ephemeral", "echo", "trace", "presence", "batch")


class Delivery:
    """Delivers the messages and gaps of ``pubsub`` to the rooms of ``manager``.

    ``send_buffer_bytes`` is the limit of one client's send buffer. ``keeping`` has the sessions that can be recovered.
    """

    def __init__(
        self,
        manager: Manager,
        pubsub: PubSub,
        hub: Hub,
        log: Log,
        limits: ClientLimits,
        keeping: Keeping,
        rights: ChannelRights,
        presence: PresenceRooms,
        send_buffer_bytes: int,
    ) -> None:
        self._manager = manager
        self._pubsub = pubsub
        self._hub = hub
        self._log = log
        self._limits = limits
        self._keeping = keeping
        self._rights = rights
        self._presence = presence
        self._matching = pubsub.matching
        self._send_buffer_bytes = send_buffer_bytes
        #: At most half of this waits when a page is sent: a replay alone does not make its client lag.
        self._page_bytes = send_buffer_bytes // 8
        #: The positions of retained messages that are to be sent, by client and channel.
        self._retained: dict[str, dict[str, int]] = {}
        packets = ReplayPackets(manager)
        self._tools = ReplayTools(
            manager, hub, pubsub.matching, packets, rights, self._charge, self._page_bytes, self._retained
        )
        self.replays = Replays(manager, self._page_bytes, self._end_failed)
        #: The replays of clients that can recover their session, or have patterns.
        self._catching_up: dict[str, CatchingUp] = {}
        self._patterns = PatternDelivery(
            manager, hub, pubsub.matching, rights, self._hold_lagging, self._hold_overlapping
        )
        self._conflating = Conflating(
            pubsub.rules, hub, self._send, self._send_late, self._replay_late, lambda: log.position
        )
        pubsub.rules.watch(self._forget_conflated)
        pubsub.add_receiver(self)

    def room_of(self, sid: str, channel: str) -> str:
        """Return the room of a subscription: the channel's, or that of its filter and of its form of numbers."""
        return room_of(channel, self._hub.filter_of(sid, channel), self._hub.wants_strings(sid, channel))

    def enter(self, sid: str, channel: str, filter: Filter | None, strings: bool = False) -> bool:
        """Put a subscription into its room. Return True when it already was in a room of the channel.

        ``strings``: it gets the numbers of payloads as strings.
        """
        before, now = self.room_of(sid, channel), room_of(channel, filter, strings)
        live = before in self._manager.get_rooms(sid, "/")
        self._hub.set_filter(sid, channel, filter)
        self._hub.set_strings(sid, channel, strings)
        if not live:
            self._conflating.begin(sid, channel)
            self._manager.enter_room(sid, "/", now)
        elif before != now:
            self._manager.move(sid, before, now)
        return live

    def has_entered(self, sid: str, channel: str) -> bool:
        """Return whether a subscription is in its room, and gets messages."""
        return self.room_of(sid, channel) in self._manager.get_rooms(sid, "/")

    def hold(self, sid: str, channel: str, after: int, start: Start, retained: int | None = None) -> Callable[[], None]:
        """Hold live messages of the log back from a subscription, for a replay of what follows the position ``after``.

        It is that of ``start``; without one the client has not requested the replay. ``retained`` is the position of a
        retained message, with which the replay begins. Returns the function that replays; it waits.
        """
        if retained is not None:
            self._retained.setdefault(sid, {})[channel] = retained
            cause = "retained"
        else:
            cause = "lagging" if start is None else "since" if wants_all(start) else "history"
        metrics.replays.labels(cause).inc()
        catching_up = self.catching_up(sid)
        if catching_up is not None:
            catching_up.hold(channel, after, start)
            self._manager.pass_by(sid, self.room_of(sid, channel))
            self._wait_together(catching_up, sid, channel)
            return catching_up.run
        replay = self._pubsub.holds.hold(sid, channel, after, self._client(sid, channel), start)
        self._manager.pass_by(sid, self.room_of(sid, channel))
        return functools.partial(self.replays.send, sid, channel, replay)

    def catching_up(self, sid: str) -> CatchingUp | None:
        """Return the replays of a client that can recover its session, or has patterns; None for another client.

        All of its subscriptions are replayed together.
        """
        cursor = self._manager.cursor_of(sid)
        found = self._catching_up.get(sid)
        if cursor is None:
            if not self._hub.patterns_of(sid):
                return None
            cursor = Cursor(self._log) if found is None else found.cursor
        if found is None or found.cursor is not cursor:
            client = functools.partial(self._client, sid)
            found = self._catching_up[sid] = CatchingUp(
                self._log,
                self._hub,
                self._manager,
                sid,
                cursor,
                self._page_bytes,
                client,
                self._keeping.replayed,
                self._end_failed,
                with_offsets=self._manager.cursor_of(sid) is cursor,
            )
        return found

    def align(self, sid: str, channel: str) -> None:
        """Let a subscription that has just begun wait for the client's replays that overlap with it, if there are any.

        So each message is sent once. Does nothing for a client without patterns.
        """
        catching_up = self.catching_up(sid) if self._hub.patterns_of(sid) else None
        held = self._hub.held_of(sid)
        # Those that overlap with a held one are held, too: it is enough to look at these.
        if catching_up is not None and any(overlap(channel, other) for other in held if other != channel):
            self._wait_together(catching_up, sid, channel)
            if not self._hub.held_by(sid, channel):
                catching_up.hold(channel, self._log.position)
            green.run_soon(catching_up.run)

    def _wait_together(self, catching_up: CatchingUp, sid: str, channel: str) -> None:
        """Let the client's subscriptions that overlap with one wait for its replay, and replay those that are behind.

        The live ones go on after the present position: they still get the messages that are being sent at the moment.
        """
        held_by, patterns = self._hub.held_by, self._hub.patterns_of(sid)
        if not is_pattern(channel) and all(
            isinstance(held_by(sid, one), Place) for one in patterns if overlap(one, channel)
        ):
            return  # so do those that overlap with these
        for other in self._hub.overlapping(sid, channel):
            replay = self._hub.held_by(sid, other)
            if isinstance(replay, Replay):  # begun before the client had a pattern
                catching_up.adopt(replay)
            elif replay is None and self.has_entered(sid, other):
                catching_up.hold(other, self.unsent(other, self._log.position))

    def _hold_overlapping(self, sid: str, channel: str, after: int) -> None:
        """Replay to a client with patterns what follows ``after``: to a subscription and those that overlap with it."""
        self._hold_together(sid, [channel, *self._hub.overlapping(sid, channel)], after)

    def _hold_together(
        self, sid: str, channels: Collection[str], after: int, others: tuple[Collection[str], int] = ((), 0)
    ) -> None:
        """``others``: channels that are further on, and the position after which they go on."""
        catching_up = self.catching_up(sid)
        if catching_up is not None:
            for one in channels:
                if not self._hub.held_by(sid, one) and self.has_entered(sid, one):
                    catching_up.hold(one, self.unsent(one, others[1] if one in others[0] else after))
                    self._manager.pass_by(sid, self.room_of(sid, one))
            green.run_soon(catching_up.run)

    def drop(self, sid: str) -> None:
        """Forget a client that has left."""
        self._catching_up.pop(sid, None)
        self._rights.drop(sid)
        self._retained.pop(sid, None)

    def tell_live(self, sid: str, channel: str, place: dict[str, Any]) -> None:
        """Report to a client that live messages follow a place, its ``epoch`` and ``position``, without a replay.

        Another replay of this subscription that is in progress reports it at its end.
        """
        replay = self._hub.held_by(sid, channel)
        if isinstance(replay, Replay | Place):
            replay.announced = True
        elif self._hub.is_subscribed(sid, channel):
            self._manager.emit("live", named(channel) | place, "/", to=sid, ignore_queue=True)

    def leave(self, sid: str, channel: str) -> None:
        """End a subscription: ``sid`` gets no more messages of ``channel``."""
        room = self.room_of(sid, channel)
        self._presence.end(sid, channel)
        self.replays.discard(sid, channel)
        self._retained.get(sid, {}).pop(channel, None)
        if sid in self._catching_up:
            self._catching_up[sid].discard(channel)
        self._pubsub.leave(sid, channel)
        self._keeping.left(sid, channel)
        if not self._hub.patterns_of(sid):
            self._rights.drop(sid)
        self._manager.leave_room(sid, "/", room)

    def revoke(self, sid: str, channel: str) -> None:
        """End a subscription that is no longer allowed, and notify the client."""
        self._end(sid, channel, ForbiddenError.code)

    def unsubscribe(self, sid: str, channel: str) -> None:
        """End a subscription because the application or an operator says so, and notify the client."""
        self._end(sid, channel, EndedByServerError.code)

    def _end(self, sid: str, channel: str, reason: str) -> None:
        self.leave(sid, channel)
        self._manager.emit("unsubscribed", named(channel) | {"reason": reason}, "/", to=sid, ignore_queue=True)

    def _end_failed(self, sid: str, channel: str) -> None:
        # Otherwise the client would wait for messages that the failed replay holds back.
        self._end(sid, channel, SocketIOPGError.code)

    def charge(self, costs: Sequence[FilterCost]) -> None:
        """Count what filters have cost for the clients that have them."""
        for channel, filter, steps in costs:
            for room in (room_of(channel, filter), room_of(channel, filter, True)):
                for sid, _ in list(self._manager.get_participants("/", room)):
                    self._charge(sid, channel, filter, steps)

    def _charge(self, sid: str, channel: str, filter: Filter, steps: int) -> None:
        """Count the steps that a filter took. End the subscription when the client's filters cost too much."""
        if self._hub.is_subscribed(sid, channel) and not self._limits.spend_on_filters(sid, steps):
            green.run_soon(self._end_expensive, sid, channel, filter)

    def _end_expensive(self, sid: str, channel: str, filter: Filter) -> None:
        # Charged more than once before this runs, or replaced by the client.
        if self._hub.filter_of(sid, channel) == filter:
            metrics.expensive_filters.inc()
            self._end(sid, channel, FilterTooExpensiveError.code)

    def emit_hello(
        self,
        sid: str,
        claims: Claims | None,
        auth: str,
        health: dict[str, Any] | None,
        recovery: dict[str, Any] | None = None,
    ) -> None:
        """Send the first event of a client that has connected; ``auth`` is AUTH, ``health`` that of :class:`Health`.

        ``recovery``: what has become of its session, for a client that wants to recover it.
        """
        identity = ANONYMOUS if claims is None else claims.to_wire()
        body = {"sid": sid, "version": __version__, "features": FEATURES, "auth": auth, "health": health} | identity
        if recovery is not None:
            body["recovery"] = recovery
        self._manager.emit("server_hello", body, "/", to=sid, ignore_queue=True)

    def emit_missed(self, sid: str, channel: str) -> None:
        """Tell a client, which was away, that it may have missed NOTIFY messages of a channel."""
        body = {"channel": channel, "reason": "reconnected", "epoch": self._log.epoch, "position": self._log.position}
        self._manager.emit("gap", body, "/", to=sid, ignore_queue=True)

    def emit_health(self, health: dict[str, Any]) -> None:
        """Report to all clients of this node whether the database is reachable."""
        self._manager.emit("health", health, "/", ignore_queue=True)

    def emit_expiring(self, session: Session) -> None:
        """Warn a client that its token expires soon."""
        assert session.claims is not None
        body = {"expires_at": session.claims.to_wire()["expires_at"]}
        self._manager.emit("token_expiring", body, session.namespace, to=session.sid, ignore_queue=True)

    def expire(self, session: Session) -> None:
        """Disconnect a client whose token has expired. Waits for the application's disconnect handlers."""
        self.cut_off(session.sid, UnauthorizedError("the token has expired"), "expired", session.namespace)

    def disconnect_idle(self, sid: str) -> None:
        """Disconnect a client that was idle for too long. Waits for the application's disconnect handlers."""
        self.cut_off(sid, IdleTimeoutError("nothing was heard for too long"), "idle_timeout")

    def cut_off(self, sid: str, error: SocketIOPGError, reason: str, namespace: str = "/") -> None:
        """Send the error to a client and disconnect it. Waits for the application's disconnect handlers."""
        socket = self._manager.socket_of(sid, namespace)
        if socket is not None and not socket.closed and not socket.closing:
            metrics.cut_off.labels(reason).inc()
            self._keeping.forget(sid)
            self._presence.leave_all(sid)
            self._manager.emit("error", error.to_wire(), namespace, to=sid, ignore_queue=True)
            # At the level of Engine.IO: the client reconnects, with a new token if it can get one.
            socket.close(False, True)

    def receive_messages(self, messages: Sequence[EncodedMessage]) -> None:
        """Send messages to the rooms of their channels and of the filters that they match, or some of them later."""
        self._conflating.receive(messages)

    def unsent(self, name: str, position: int) -> int:
        """Return the position up to which a live subscription was sent everything, ``position`` at most."""
        return self._conflating.unsent(name, position)

    def _forget_conflated(self) -> None:
        """End the sessions of clients that hear a conflated channel: their offsets would be ahead of what waits."""
        for channel in self._hub.channels():
            if self._pubsub.rules.of(channel).max_rate is not None:
                for sid in self._hub.subscribers(channel):
                    if isinstance(sid, str):
                        self._keeping.forget(sid)

    def _replay_late(self, sid: str, name: str, after: int) -> None:
        """Replay to a subscription what follows a position, as it is not to get a message that has waited."""
        if self.has_entered(sid, name):
            green.run_soon(self.hold(sid, name, after, None))

    def _send_late(self, messages: Sequence[EncodedMessage]) -> None:
        self._send(messages, late=True)

    def _send(self, messages: Sequence[EncodedMessage], late: bool = False) -> None:
        """``late``: the messages, of one channel, have waited, and others have been sent meanwhile."""
        if self._hub.patterns and self._patterns.concerns(messages):
            self._send_with_patterns(messages)
            return
        rooms = [self._rooms(message) for message in messages]
        wires: Iterable[dict[str, Any]] = (message.to_wire() for message in messages)
        if self._hub.any_strings:
            messages, rooms, wires = map(list, zip(*self._with_strings(messages, rooms), strict=True))
        channels = {message.channel for message in messages}
        # Held subscriptions get these messages from their replay.
        held = None
        if messages[0].position is None:
            self._keeping.note_notify(channels)
        else:
            channel_of = {room: message.channel for message, some in zip(messages, rooms, strict=True) for room in some}
            self._hold_lagging(channel_of, messages[0].position - 1, late)
            held_of = {channel: self._hub.held(channel) for channel in channels}
            held = {room: held_of[channel] for room, channel in channel_of.items() if held_of[channel]}
        # A channel's subscription is in one of its rooms only.
        events = zip(rooms, wires, strict=True)
        excluded = None
        if any(message.meta is not None for message in messages):
            excluded = [message.exclude for message in messages]
            _log_traces(messages)
        self._manager.emit_in_order("event", events, skipped=held, apart=len(channels) == 1, excluded=excluded)

    def _send_with_patterns(self, messages: Sequence[EncodedMessage]) -> None:
        if messages[0].position is None:
            self._keeping.note_notify({message.channel for message in messages})
        if any(message.meta is not None for message in messages):
            _log_traces(messages)
        self._patterns.send(messages)

    def _rooms(self, message: EncodedMessage) -> Sequence[str]:
        """Return the rooms that get ``message``."""
        channel = message.channel
        if self._hub.filters(channel) is None:
            return (channel,)
        return [channel, *(room_of(channel, filter) for filter in self._matching.matching(message))]

    def rooms_of(self, message: EncodedMessage) -> list[tuple[str, str]]:
        """Return the rooms that get ``message``, each with the payload in the form that it gets."""
        found = [(room, message.payload_json) for room in self._rooms(message)]
        if self._hub.has_strings(message.channel):
            text = self._matching.strings(message)
            found += [(of_strings(room), text) for room, _ in found]
        return found

    def _with_strings(
        self, messages: Sequence[EncodedMessage], rooms: Sequence[Sequence[str]]
    ) -> list[tuple[EncodedMessage, Sequence[str], dict[str, Any]]]:
        """Return each message with rooms and what they get: once as it is, and once with numbers as strings."""
        there = self._manager.rooms.get("/", {})
        found: list[tuple[EncodedMessage, Sequence[str], dict[str, Any]]] = []
        for message, some in zip(messages, rooms, strict=True):
            others = [other for room in some if (other := of_strings(room)) in there]
            if not others or any(room in there for room in some):
                found.append((message, some, message.to_wire()))
            if others:
                found.append((message, others, _with_payload(message, self._matching.strings(message))))
        return found

    def _all_rooms(self, channel: str) -> list[str]:
        """Return the rooms of all subscriptions to ``channel``."""
        rooms = [channel, *(room_of(channel, filter) for filter in self._hub.filters(channel) or ())]
        return [*rooms, *map(of_strings, rooms)] if self._hub.has_strings(channel) else rooms

    def _client(self, sid: str, channel: str) -> ReplayClient:
        return ReplayClient(self._tools, sid, channel, self._log.epoch)

    def _hold_lagging(self, channel_of: Mapping[str, str], after: int, late: bool = False) -> None:
        """Replay to clients that read too slowly, at their own speed, instead of disconnecting them as with NOTIFY.

        ``channel_of`` has the rooms that are about to get the messages after the position ``after``. ``late``: other
        channels are further on.
        """
        hub = self._hub
        for room, channel in channel_of.items():
            for sid in self._manager.lagging(room, self._send_buffer_bytes // 4):
                if not hub.is_subscribed(sid, channel) or hub.held_by(sid, channel):
                    continue
                if self._manager.cursor_of(sid) is not None:
                    # All together if it can recover its session: its offsets must say how far each has got.
                    metrics.replays.labels("lagging").inc()
                    channels = hub.channels_of(sid)
                    further = channels - {channel} if late else ()
                    self._hold_together(sid, channels, after, (further, self._log.position))
                elif hub.patterns_of(sid):
                    metrics.replays.labels("lagging").inc()
                    self._hold_overlapping(sid, channel, after)
                elif self.has_entered(sid, channel):
                    green.run_soon(self.hold(sid, channel, after, None))

    def receive_gap(self, gap: NotifyGap) -> None:
        """Report a gap of NOTIFY to the channel's subscribers."""
        metrics.gaps.labels(gap.reason).inc()
        self._manager.emit("gap", gap.to_wire(), "/", to=self._all_rooms(gap.channel), ignore_queue=True)

    def receive_log_gap(self, reason: str) -> None:
        """Report lost messages of the log to all subscribers."""
        metrics.gaps.labels(reason).inc()
        if reason == "epoch_changed":
            self._conflating.drop_log()
        for channel in self._hub.channels():
            body = named(channel) | {"reason": reason, "epoch": self._log.epoch, "position": self._log.position}
            self._manager.emit("gap", body, "/", to=self._all_rooms(channel), ignore_queue=True)

    def receive_trims(self, trims: Mapping[str, int]) -> None:
        """Report messages that rules have removed before they were delivered, to the subscribers of their channels."""
        metrics.gaps.labels("trimmed").inc()
        for channel, upto in trims.items():
            for name in self._hub.names(channel):
                if self._hub.has_channel(name):
                    body = named(name) | {"reason": "trimmed", "epoch": self._log.epoch, "position": upto}
                    unaware = self._patterns.refused(name, channel)
                    rooms = self._all_rooms(name)
                    self._manager.emit("gap", body, "/", to=rooms, skip_sid=unaware, ignore_queue=True)


def _log_traces(messages: Sequence[EncodedMessage]) -> None:
    if logger.isEnabledFor(logging.DEBUG):
        # Once a message, of which there may be two forms.
        for one in {id(message): message for message in messages}.values():
            if one.meta is not None and one.meta.traceparent is not None:
                found = {"channel": one.channel, "position": one.position, "traceparent": one.meta.traceparent}
                logger.debug("delivering", extra=found)


def _with_payload(message: EncodedMessage, payload_json: str) -> dict[str, Any]:
    """Return a message as :meth:`EncodedMessage.to_wire` does, with another form of the payload."""
    return message.to_wire() | {"payload": orjson.Fragment(payload_json)}
