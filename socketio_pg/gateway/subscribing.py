"""Subscribes clients to channels and patterns and unsubscribes them: to one, or to many with one request.

`handlers` registers the events; `delivery` has the rooms that the subscriptions are in.
"""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from socketio_pg.access.permissions import Permissions
from socketio_pg.core import green, metrics
from socketio_pg.core.channels import validate_channel
from socketio_pg.core.errors import InvalidRequestError, RateLimitedError, SocketIOPGError
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.core.patterns import is_pattern, named, validate_pattern
from socketio_pg.gateway.delivery import Delivery
from socketio_pg.gateway.limits import ClientLimits
from socketio_pg.gateway.presence_requests import Prepared, PresenceRequests
from socketio_pg.log.log import Log
from socketio_pg.log.starts import Snapshot, Start, limited_start, requested_start
from socketio_pg.protocol.answers import Answer, showable
from socketio_pg.protocol.server import Server
from socketio_pg.pubsub.filters import INVALID_STEPS, Filter, parse_filter
from socketio_pg.pubsub.hub import Hub, UnknownSubscriberError
from socketio_pg.pubsub.pubsub import PubSub
from socketio_pg.recovery.keeping import Keeping
from socketio_pg.recovery.session import Entry

#: The maximum number of channels in one request.
MAX_CHANNELS = 500

#: Fields of a request for many channels that apply to each channel, whatever position the channel has.
_SHARED = ("batch", "filter", "numbers", "presence")

_limited_log = RateLimitedLog(logging.getLogger("socketio_pg.subscribing"))


@dataclass(slots=True)
class Pending:
    """A subscription to a channel, or pattern, whose LISTEN is committed, and which is in no room yet.

    ``after`` and ``told`` are the result of :meth:`Log.find_start`, in the log's ``epoch``. ``new``: the client was not
    subscribed before. ``connection``: Engine.IO's sid, while the client is connected.
    """

    channel: str
    connection: str | None
    start: Start
    filter: Filter | None
    requested_filter: Any
    new: bool
    strings: bool = False
    after: int | None = None
    #: The position of the retained message with which it begins.
    retained: int | None = None
    told: dict[str, Any] = field(default_factory=dict)
    epoch: str | None = None
    #: Whether the client's session has it, and the subscription that it replaces there.
    stored: bool = False
    former: Entry | None = None
    #: Whether the client takes several messages in one event, if it says so.
    batch: bool | None = None
    #: What the client has asked for in the channel's presence.
    presence: Prepared | None = None


class Subscribing:
    """Handles ``subscribe`` and ``unsubscribe``.

    ``require(sid, channel)`` returns when the client may subscribe, and raises otherwise; it may wait.
    """

    def __init__(
        self,
        server: Server,
        pubsub: PubSub,
        hub: Hub,
        log: Log,
        delivery: Delivery,
        keeping: Keeping,
        permissions: Permissions,
        limits: ClientLimits,
        presence: PresenceRequests,
        require: Callable[[str, str], object],
    ) -> None:
        self._server = server
        self._pubsub = pubsub
        self._hub = hub
        self._log = log
        self._delivery = delivery
        self._keeping = keeping
        self._permissions = permissions
        self._limits = limits
        self._presence = presence
        self._require = require

    def subscribe(self, sid: str, request: dict[str, Any]) -> Answer:
        if "channels" in request:
            return self._subscribe_together(sid, request)
        pending = self.prepare(sid, request)
        body, then = self._complete(sid, pending)
        self.set_batching(sid, [pending.batch])
        return Answer("subscribed", body, then)

    def unsubscribe(self, sid: str, request: dict[str, Any]) -> Answer:
        if "channels" in request:
            return self._unsubscribe_together(sid, request)
        return Answer("unsubscribed", self._leave(sid, request))

    def set_batching(self, sid: str, wanted: Sequence[bool | None]) -> None:
        """Let the last one that says something about batches count.

        Once for each request: a change costs some time for each room of the client.
        """
        said = [batch for batch in wanted if batch is not None]
        if said:
            self._server.manager.set_batching(sid, said[-1])

    # -- one channel ---------------------------------------------------------------------------------------------------

    def prepare(self, sid: str, request: dict[str, Any], *, stored: bool = False) -> Pending:
        """Return a subscription that only has to be completed. Waits, for all that has to be waited for.

        ``stored``: the client's session has it already.
        """
        channel = _name_of(request)
        connection = self._connection(sid)
        mark = self._permissions.mark()
        self._require(sid, channel)
        # Only clients that have the permission cost more than the question.
        start, strings = requested_start(request), _wants_strings(request.get("numbers"))
        batch = wants_batches(request.get("batch"))
        filter = self._parse_filter(sid, request.get("filter"))
        presence = self._presence.prepare_again if stored else self._presence.prepare
        wanted = presence(sid, channel, request.get("presence"))
        if wanted is not None:
            # That may have waited, and the client may have other claims. From here on `authenticate` checks it.
            self._require(sid, channel)
        new = not self._hub.is_subscribed(sid, channel)
        if new:
            self._limits.check_subscriptions(self._hub.count_channels(sid))
            if is_pattern(channel):
                self._limits.check_patterns(len(self._hub.patterns_of(sid)))
            if not self._hub.has_channel(channel):
                self._limits.check_channels(self._hub.channel_count)
        self._pubsub.join(sid, channel)
        pending = Pending(
            channel, connection, start, filter, request.get("filter"), new, strings, batch=batch, presence=wanted
        )
        try:
            if self._permissions.is_overtaken(channel, mark):
                # The first answer may predate a change of permissions. Later changes recheck this subscription.
                self._require(sid, channel)
            self._find_start(pending, stored)
            if not stored:
                self._check_connection(sid, pending)
                self._store(sid, pending)
        except BaseException:
            self._undo(sid, pending)
            raise
        return pending

    def _store(self, sid: str, pending: Pending) -> None:
        """Store the subscription in the client's session, if it has one."""
        replaying: bool | Literal["snapshot"] = pending.after is not None
        if replaying and isinstance(pending.start, Snapshot) and pending.start.ids:
            replaying = "snapshot"
        after = self._log.position if pending.after is None else pending.after
        entry = Entry(0, after, pending.requested_filter or None, pending.strings, replaying)
        pending.former = self._keeping.joined(sid, pending.channel, entry)
        pending.stored = True

    def _find_start(self, pending: Pending, stored: bool = False) -> None:
        """``stored``: the client has had the subscription before, so no rule restricts its replay."""
        channel, rule = pending.channel, self._pubsub.rule_of(pending.channel)
        start, refused = (pending.start, None) if stored else limited_start(pending.start, rule)
        pending.after, pending.told = self._log.find_start(channel, start)
        if refused is not None:
            metrics.unrecovered.labels(refused).inc()
            pending.told = {"recovered": False, "reason": refused}
        pending.retained = None
        if rule.retained and pending.new and not stored and (pending.after is None or not start):
            self._find_retained(pending)
        pending.epoch = self._log.epoch

    def _find_retained(self, pending: Pending) -> None:
        """Let the subscription begin with the newest message of the channel, unless it is cleared."""
        newest = self._log.newest(pending.channel)
        if newest is not None and newest.position is not None and newest.payload_json != "null":
            pending.retained = newest.position
            pending.after = newest.position - 1

    def _complete(self, sid: str, pending: Pending) -> tuple[dict[str, Any], Callable[[], None] | None]:
        """Begin to deliver. Return the fields of the answer, and the function that replays. Does not wait.

        A client that has requested a start is told when live messages follow, also when there is no replay.
        """
        channel, filter = pending.channel, pending.filter
        # The client may have disconnected or unsubscribed in the meantime.
        self._check_connection(sid, pending)
        if not self._hub.is_subscribed(sid, channel):
            raise InvalidRequestError("unsubscribed before the subscription was complete", channel=channel)
        try:
            if filter is not None:
                self._limits.check_filters(*self._hub.filters_size(sid, filter, self._hub.filter_of(sid, channel)))
            presence = None if pending.presence is None else self._presence.complete(sid, channel, pending.presence)
        except SocketIOPGError:
            self._undo(sid, pending)
            raise
        live = self._delivery.enter(sid, channel, filter, pending.strings)
        body: dict[str, Any] = named(channel) | pending.told
        if is_pattern(channel):
            # Of NOTIFY it gets only what this server hears anyway.
            body["tier"] = "log"
        if presence:
            body["presence"] = presence
        if filter is not None:
            body["filter"] = pending.requested_filter
        if pending.strings:
            body["numbers"] = "string"
        max_rate = self._pubsub.rules.of(channel).max_rate
        if max_rate is not None:
            body["max_rate"] = max_rate
            # Its offsets would be ahead of what waits for the end of an interval.
            self._keeping.forget(sid)
        place: dict[str, Any] = {}
        then: Callable[[], None] | None = None
        if self._log.epoch is not None:
            after = pending.after
            if after is not None:
                then = self._delivery.hold(sid, channel, after, pending.start, pending.retained)
            position = self._pubsub.holds.position_of(sid, channel, live)
            if live:
                position = self._delivery.unsent(channel, position)
            if after is None:
                if not live:
                    self._keeping.began(sid, channel, position)
                self._delivery.align(sid, channel)
            place = {"epoch": self._log.epoch, "position": position}
        if then is None and pending.start is not None:
            then = functools.partial(self._delivery.tell_live, sid, channel, place)
        return body | place, then

    def _connection(self, sid: str) -> str | None:
        found: str | None = self._server.manager.eio_sid_from_sid(sid, "/")
        return found

    def _check_connection(self, sid: str, pending: Pending) -> None:
        """Raise if the client has lost the connection of its request. It may have recovered its session since."""
        if self._connection(sid) != pending.connection:
            raise InvalidRequestError("the client has disconnected", channel=pending.channel)

    def _undo(self, sid: str, pending: Pending) -> None:
        if self._connection(sid) != pending.connection:
            return  # its subscriptions are those of another connection, or have ended with it
        # Another request for the same channel may have completed the subscription in the meantime: it stays.
        if pending.new and not self._delivery.has_entered(sid, pending.channel):
            self._pubsub.leave(sid, pending.channel)
            self._keeping.left(sid, pending.channel)
        elif pending.stored:
            self._keeping.put(sid, pending.channel, pending.former)

    def _parse_filter(self, sid: str, value: object) -> Filter | None:
        if not value:
            return parse_filter(value)
        self._limits.check_new_filter(sid)
        steps = INVALID_STEPS
        try:
            filter = parse_filter(value)
            if filter is not None:
                steps = filter.parsing_steps
            return filter
        finally:
            self._limits.spend_on_filters(sid, steps)

    def _leave(self, sid: str, request: dict[str, Any]) -> dict[str, Any]:
        channel = _name_of(request)
        self._delivery.leave(sid, channel)
        return named(channel)

    # -- many channels -------------------------------------------------------------------------------------------------

    def _subscribe_together(self, sid: str, request: dict[str, Any]) -> Answer:
        entries = self._entries(sid, request)
        # All at the same time: their permission checks, LISTENs and reads of the log are combined.
        found = _together([functools.partial(self._prepare_entry, sid, entry) for entry in entries])
        # A subscription without a room gets no gap, so a new epoch must be noticed here.
        while any(isinstance(one, Pending) and self._is_stale(one) for one in found):
            found = _together([functools.partial(self._renew, sid, one) for one in found])
        # Nothing waits from here to the answer: no message is sent before the answer that has its position.
        results, replays, batches = [], [], []
        for entry, one in zip(entries, found, strict=True):
            try:
                if isinstance(one, SocketIOPGError):
                    raise one
                body, then = self._complete(sid, one)
            except SocketIOPGError as error:
                results.append(entry.failure(error))
                continue
            results.append({"ok": True, **body})
            batches.append(one.batch)
            if then is not None:
                replays.append(then)
        self.set_batching(sid, batches)
        return Answer("subscribed", {"channels": results}, functools.partial(_run_all, replays), once=True)

    def _unsubscribe_together(self, sid: str, request: dict[str, Any]) -> Answer:
        results = []
        for entry in self._entries(sid, request):
            try:
                results.append({"ok": True, **self._leave(sid, entry.request)})
            except SocketIOPGError as error:
                results.append(entry.failure(error))
        return Answer("unsubscribed", {"channels": results}, once=True)

    def _prepare_entry(self, sid: str, entry: "_Entry") -> Pending:
        if entry.repeated:
            raise InvalidRequestError("this channel occurs twice in the request")
        return self.prepare(sid, entry.request)

    def _renew(self, sid: str, found: "Pending | SocketIOPGError") -> Pending:
        """Find the start of a subscription again if the log has a new epoch."""
        if isinstance(found, SocketIOPGError):
            raise found
        if self._is_stale(found):
            try:
                self._find_start(found)
            except BaseException:
                self._undo(sid, found)
                raise
        return found

    def _is_stale(self, pending: Pending) -> bool:
        return pending.start is not None and pending.epoch != self._log.epoch

    def _entries(self, sid: str, request: dict[str, Any]) -> "list[_Entry]":
        """Return the requests for single channels that ``channels`` stands for, and count what they cost."""
        channels = request["channels"]
        if "channel" in request or "pattern" in request:
            raise InvalidRequestError("channels does not go together with channel or pattern")
        if not isinstance(channels, list) or not 1 <= len(channels) <= MAX_CHANNELS:
            raise InvalidRequestError(f"channels must be a list of 1 to {MAX_CHANNELS} channels")
        try:
            self._limits.check_channels_together(sid, len(channels))
        except RateLimitedError as error:
            if error.cut_off:
                green.run_soon(self._delivery.cut_off, sid, error, "rate_limited")
            raise
        common = {name: value for name, value in request.items() if name in ("since", "history", *_SHARED)}
        entries: list[_Entry] = []
        names: set[str] = set()
        for one in channels:
            own = one if isinstance(one, dict) else {"channel": one}
            # A position of its own takes the place of the common `history`, and the other way round.
            inherited = _SHARED if "since" in own or "history" in own else ("since", "history", *_SHARED)
            single = {name: common[name] for name in inherited if name in common} | own
            name = single.get("pattern", single.get("channel"))
            entries.append(_Entry(single, isinstance(name, str) and name in names))
            if isinstance(name, str):  # all others are invalid
                names.add(name)
        return entries


def _name_of(request: Mapping[str, Any]) -> str:
    """Return the channel, or pattern, of a request. Raises :class:`InvalidRequestError`."""
    if "pattern" not in request:
        return validate_channel(request.get("channel"))
    if "channel" in request:
        raise InvalidRequestError("channel and pattern do not go together")
    return validate_pattern(request["pattern"])


def _wants_strings(value: object) -> bool:
    if value not in (None, "string"):
        raise InvalidRequestError("numbers must be 'string', or null")
    return value is not None


def wants_batches(value: object) -> bool | None:
    """Return what a request says about batches; None for nothing. Raises :class:`InvalidRequestError`."""
    if value is not None and not isinstance(value, bool):
        raise InvalidRequestError("batch must be true, false or null")
    return value


@dataclass(frozen=True, slots=True)
class _Entry:
    """A request for one channel. ``repeated``: an earlier one of the same list is for this channel too."""

    request: dict[str, Any]
    repeated: bool

    def failure(self, error: SocketIOPGError) -> dict[str, Any]:
        """Return what the answer has about this channel."""
        metrics.errors.labels(error.code).inc()
        field = "pattern" if "pattern" in self.request else "channel"
        name = self.request.get(field)
        shown = {field: showable(name)} if isinstance(name, str) else {}
        return {"ok": False, **shown, "error": error.to_wire()}


T = TypeVar("T")


def _together(functions: Sequence[Callable[[], T]]) -> list[T | SocketIOPGError]:
    """Call all at the same time, and return their results, or errors in their places."""
    found: list[T | SocketIOPGError] = []
    for result in green.run_together(functions):
        if isinstance(result, UnknownSubscriberError):
            found.append(InvalidRequestError("the client has disconnected"))
        elif isinstance(result, BaseException) and not isinstance(result, SocketIOPGError):
            _limited_log(logging.ERROR, "a subscription failed", exc_info=result)
            found.append(SocketIOPGError("the server failed to handle this"))
        else:
            found.append(result)
    return found


def _run_all(functions: Sequence[Callable[[], None]]) -> None:
    for function in functions:
        green.run_soon(function)
