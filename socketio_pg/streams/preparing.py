"""Prepares a stream before it begins: permissions, limits, subscriptions, and where in the log it begins."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from socketio_pg.access.access import Access
from socketio_pg.access.tokens import Claims
from socketio_pg.core import green
from socketio_pg.core.errors import ForbiddenError, LogNotInstalledError, UnauthorizedError
from socketio_pg.gateway.limits import ClientLimits
from socketio_pg.log.log import Log
from socketio_pg.log.starts import LogPosition, Start, limited_start
from socketio_pg.pubsub.hub import Hub
from socketio_pg.pubsub.pubsub import PubSub
from socketio_pg.streams.groups import Contents

#: The maximum number of channels of a stream, and of a ticket.
MAX_CHANNELS = 100
#: The start of a stream with all messages that the log has.
EARLIEST = "earliest"


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """The request for a stream. ``start`` may be :data:`EARLIEST`; ``told`` is part of the event `subscribed`."""

    contents: Contents
    start: Start | str
    told: dict[str, Any]
    #: Why its position cannot be used, if it cannot even be read; then ``start`` is None.
    unusable: str | None = None
    #: Whether it is an error when there is no log.
    needs_log: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """The start of a stream: channel → position to replay after; None for no replay. In the log's ``epoch``."""

    starts: dict[str, int] | None
    told: dict[str, Any]
    epoch: str | None


class Preparing:
    """Prepares the streams of one server. ``sid`` is the id of a stream that ``hub`` and ``access`` know already."""

    def __init__(self, pubsub: PubSub, hub: Hub, log: Log, access: Access, limits: ClientLimits) -> None:
        self._pubsub = pubsub
        self._hub = hub
        self._log = log
        self._access = access
        self._limits = limits

    def admit(self, claims: Claims | None, channels: Sequence[str]) -> int:
        """Return when a client may subscribe to ``channels``, with the mark of that decision for :meth:`prepare`.

        Waits, and raises as :meth:`Permissions.require`.
        """
        mark = self._access.permissions.mark()
        self._require(claims, channels)
        return mark

    def prepare(self, sid: str, request: StreamRequest, claims: Claims | None, mark: int) -> Found:
        """Subscribe to all channels, and return where the stream begins. Waits; checks last what may change meanwhile.

        Raises :class:`SocketIOPGError`.
        """
        contents = request.contents
        for number, channel in enumerate(contents.channels):
            self._limits.check_subscriptions(number)
            if not self._hub.has_channel(channel):
                self._limits.check_channels(self._hub.channel_count)
        _together([functools.partial(self._pubsub.join, sid, one) for one in contents.channels])
        # The first answers may predate a change of permissions. Later changes recheck these subscriptions.
        is_overtaken = self._access.permissions.is_overtaken
        self._require(claims, [channel for channel in contents.channels if is_overtaken(channel, mark)])
        while True:
            found = self._find_start(request)
            if found.epoch == self._log.epoch:
                break
        for channel in contents.channels:
            self._hub.set_filter(sid, channel, contents.filter)
            self._hub.set_strings(sid, channel, contents.form == "strings")
        self._limits.check_filters(*self._hub.filters_size(sid))
        self._require_unchanged(sid, request)
        return found

    def _require(self, claims: Claims | None, channels: Sequence[str]) -> None:
        require = functools.partial(self._access.permissions.require, claims, "subscribe")
        _together([functools.partial(require, channel) for channel in channels])

    def _find_start(self, request: StreamRequest) -> Found:
        epoch, start, channels = self._log.epoch, request.start, request.contents.channels
        if request.unusable is not None:
            return Found(None, {"recovered": False, "reason": request.unusable}, epoch)
        for channel in channels:
            wanted = LogPosition("", 0) if isinstance(start, str) else start
            reason = limited_start(wanted, self._pubsub.rule_of(channel))[1]
            if reason is not None:
                return Found(None, {"recovered": False, "reason": reason}, epoch)
        if start == EARLIEST:
            if not self._log.installed:
                return Found(None, {}, epoch)
            oldest = _together([functools.partial(self._log.oldest_of, one) for one in channels])
            return Found(dict(zip(channels, oldest, strict=True)), {}, epoch)
        assert not isinstance(start, str)
        start = self._log.locate(start)
        finds = _together([functools.partial(self._log.find_start, one, start) for one in channels])
        for _, told in finds:
            if told.get("reason") == "not_installed" and request.needs_log:
                raise LogNotInstalledError("this database has no log: run 'socketio-pg init'")
            if told.get("recovered") is False:
                return Found(None, told, epoch)  # one cursor for all channels
        starts = {channel: after for channel, (after, _) in zip(channels, finds, strict=True) if after is not None}
        return Found(starts or None, finds[0][1], epoch)

    def _require_unchanged(self, sid: str, request: StreamRequest) -> None:
        """Raise if the client has lost its login or a permission while the stream was prepared."""
        if self._access.sessions.get(sid) is None:
            raise UnauthorizedError("the token has expired")
        for channel in request.contents.channels:
            if not self._hub.is_subscribed(sid, channel):
                raise ForbiddenError("this client may no longer subscribe to the channel", channel=channel)


def _together(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    """Call all at the same time, so that what they ask the database is combined. Return their results.

    Raises the first error.
    """
    results = [function() for function in functions] if len(functions) == 1 else green.run_together(functions)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
