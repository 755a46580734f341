"""Describes the connections of this process: Socket.IO clients in all namespaces, and streams. Sorts and searches them.

Rates are differences between two looks, so that nothing is counted while nobody looks.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import orjson

from socketio_pg.access.senders import Senders
from socketio_pg.access.sessions import Session, Sessions
from socketio_pg.core import green
from socketio_pg.core.listing import Listing, matches, ordered
from socketio_pg.core.patterns import named
from socketio_pg.engine.buffered import BufferedConnection
from socketio_pg.engine.socket import Socket
from socketio_pg.gateway.admission import Admission
from socketio_pg.gateway.live_tables import LiveTables
from socketio_pg.log.log import Log
from socketio_pg.log.replay import HasPosition
from socketio_pg.protocol.server import Server
from socketio_pg.pubsub.hub import Hub
from socketio_pg.streams.groups import Stream
from socketio_pg.streams.streams import Streams

#: The channels of a connection that a list shows.
MAX_CHANNELS = 100
#: Subscriptions of one connection that are shown with their filters.
MAX_SUBSCRIPTIONS = 1_000
#: Characters of the connections that one process lists: then it stops, whatever the limit is.
MAX_CHARACTERS = 1_000_000
#: Connections that are looked at before other green threads run.
SLICE = 100
#: The columns by which a list can be sorted; those whose values need two looks.
COLUMNS = (
    "since", "sub", "address", "transport", "subscriptions", "buffered", "stuck", "replay_lag", "slow", "bytes_in",
    "bytes_out", "total_in", "total_out", "messages_in", "round_trip", "node",
)  # fmt: skip
_RATES = ("bytes_in", "bytes_out", "messages_in")


class _Look(NamedTuple):
    """The counts of a connection at a time (monotonic): bytes in and out, None if unknown, and messages."""

    at: float
    received: int | None
    sent: int | None
    messages: int | None


@dataclass(slots=True)
class _Looks:
    """The look from which rates are measured, and the newest one."""

    base: _Look
    last: _Look


@dataclass(slots=True)
class _Figures:
    """The figures of one connection at one look."""

    buffered: int
    stuck: float
    replay_lag: int | None
    bytes_in: float | None = None
    bytes_out: float | None = None
    messages_in: float | None = None
    total_in: int | None = None
    total_out: int | None = None
    round_trip: float | None = None

    @property
    def is_slow(self) -> bool:
        return self.buffered > 0 or self.replay_lag is not None


class LocalClients:
    """The connections of this process. ``senders`` chooses the claims that a list shows."""

    #: Seconds between the two looks of a rate: at least, and at most before the first of them is replaced.
    least, most = 0.5, 5.0
    #: Seconds after which looks at a connection are forgotten.
    linger = 60.0

    def __init__(
        self,
        server: Server,
        sessions: Sessions,
        senders: Senders,
        hub: Hub,
        tables: LiveTables,
        streams: Streams,
        admission: Admission,
        log: Log,
    ) -> None:
        self._server = server
        self._sessions = sessions
        self._senders = senders
        self._hub = hub
        self._tables = tables
        self._streams = streams
        self._admission = admission
        self._log = log
        self._looks: dict[str, _Looks] = {}
        self._cleaned_at = time.monotonic()

    def list(
        self, listing: Listing, sub: str | None = None, sid: str | None = None, channel: str | None = None
    ) -> dict[str, Any]:
        """Return the first ``clients`` of a listing with their figures, how many there are in ``total``, and ``slow``
        ones. ``complete``: all that were wanted are there.

        With ``sub``, ``sid`` or ``channel`` only those of this user, with this id, or subscribed to this channel.
        """
        found, slow = [], 0
        # Of all connections only if they decide about the order.
        counts = listing.sort in (*_RATES, "total_in", "total_out", "round_trip")
        for number, session in enumerate(self._chosen(sub, sid, channel), 1):
            connection = self._connection(session)
            if connection is not None and self._is_found(listing.search, session, connection):
                figures = self._figures(session, connection, counts=counts)
                slow += figures.is_slow
                found.append((session, connection, figures))
            if number % SLICE == 0:
                green.sleep()

        def key(one: tuple[Session, Socket | Stream, _Figures]) -> Any:
            return self._key(listing.sort, *one)

        rows, characters, complete = [], 0, True
        ranked = ordered(found, key, listing.descending, then=lambda one: one[0].sid)
        for number, (session, connection, figures) in enumerate(ranked[: listing.first], 1):
            described = self.describe(session)
            if described is not None:
                if not counts:
                    self._count(session.sid, connection, connection.connection, figures)
                described |= self._shown(figures)
                if sid is not None:
                    described["subscriptions_of"] = self.subscriptions(sid)
                characters += len(orjson.dumps(described))
                if characters > MAX_CHARACTERS:
                    complete = False
                    break
                rows.append(described)
            if number % SLICE == 0:
                green.sleep()
        self._clean()
        return {"clients": rows, "total": len(found), "slow": slow, "complete": complete}

    def describe(self, session: Session) -> dict[str, Any] | None:
        """Return a connection as docs/identity.md has it; None if it has just ended."""
        sid = session.sid
        connection = self._connection(session)
        if connection is None:
            return None
        found: dict[str, Any] = {"sid": sid, "sub": session.subject, "claims": dict(self._senders.of(session.claims))}
        if isinstance(connection, Socket):
            found["namespace"] = session.namespace
        channels = sorted(self._hub.channels_of(sid))
        tables = self._tables.names(sid)
        return found | {
            "address": self._address(session, connection),
            "since": round(session.since, 3),
            "transport": _transport(connection),
            "buffered": connection.buffered,
            "subscriptions": len(channels) + self._tables.count_of(sid),
            "channels": channels[:MAX_CHANNELS],
            "tables": tables[:MAX_CHANNELS],
        }

    def subscriptions(self, sid: str) -> Sequence[dict[str, Any]]:
        """Return the subscriptions of a connection: ``channel``, ``pattern`` or ``table``, and ``filter``.

        One to a live table may have an ``id``, the client's own.
        """
        names = sorted(self._hub.channels_of(sid))[:MAX_SUBSCRIPTIONS]
        found = [{**named(name), "filter": self.filter_of(sid, name)} for name in names]
        return [*found, *self._tables.describe(sid)]

    def filter_of(self, sid: object, name: str) -> Any:
        """Return the filter of a subscription as JSON; None without one."""
        found = self._hub.filter_of(sid, name)
        return None if found is None else found.to_wire()

    def replay_lag(self, sid: str) -> int | None:
        """Return how many messages of the log a client is behind, while it is replayed to; None otherwise."""
        behind = None
        for channel in tuple(self._hub.held_of(sid)):
            replay = self._hub.held_by(sid, channel)
            if isinstance(replay, HasPosition):
                behind = max(behind or 0, self._log.position - replay.position)
        return behind

    # -- one connection ------------------------------------------------------------------------------------------------

    def _chosen(self, sub: str | None, sid: str | None, channel: str | None) -> Iterator[Session]:
        if sid is not None:
            session = self._sessions.get(sid)
            found = [] if session is None else [session]
        else:
            found = self._sessions.all() if sub is None else self._sessions.of(sub)
        for one in found:
            if (sub is None or one.subject == sub) and (channel is None or self._hub.is_subscribed(one.sid, channel)):
                yield one

    def _connection(self, session: Session) -> Socket | Stream | None:
        if self._streams.owns(session.sid):
            return self._streams.get(session.sid)
        socket: Socket | None = self._server.manager.socket_of(session.sid, session.namespace)
        return socket

    def _address(self, session: Session, connection: Socket | Stream) -> str:
        if isinstance(connection, Stream):
            return connection.address
        environ = self._server.get_environ(session.sid, session.namespace)
        return "" if environ is None else self._admission.address(environ)

    def _is_found(self, search: str, session: Session, connection: Socket | Stream) -> bool:
        if not search:
            return True
        if matches(search, (session.subject, session.sid, self._address(session, connection))):
            return True
        claims = self._senders.of(session.claims).values()
        return (
            matches(search, (one for one in claims if isinstance(one, str)))
            or matches(search, self._hub.channels_of(session.sid))
            or matches(search, self._tables.names(session.sid))
        )

    def _figures(self, session: Session, connection: Socket | Stream, *, counts: bool) -> _Figures:
        stuck = connection.stuck_seconds(time.monotonic())
        figures = _Figures(connection.buffered, stuck, self.replay_lag(session.sid))
        if counts:
            self._count(session.sid, connection, connection.connection, figures)
        return figures

    def _count(
        self, sid: str, connection: Socket | Stream, transport: BufferedConnection | None, figures: _Figures
    ) -> None:
        """Add what the kernel and the socket have counted, and the rates since an earlier look."""
        kernel = None if transport is None else transport.kernel_counts()
        messages = connection.messages if isinstance(connection, Socket) else None
        now = _Look(time.monotonic(), kernel and kernel.received, kernel and kernel.sent, messages)
        looks = self._looks.get(sid)
        if looks is None or _restarted(looks.base, now):
            looks = self._looks[sid] = _Looks(now, now)
        if now.at - looks.base.at > self.most and now.at - looks.last.at >= self.least:
            looks.base = looks.last
        if now.at - looks.last.at >= self.least:
            looks.last = now
        figures.bytes_in = _rate(looks.base.at, looks.base.received, now.at, now.received, self.least)
        figures.bytes_out = _rate(looks.base.at, looks.base.sent, now.at, now.sent, self.least)
        figures.messages_in = _rate(looks.base.at, looks.base.messages, now.at, now.messages, self.least)
        figures.total_in, figures.total_out = now.received, now.sent
        figures.round_trip = None if kernel is None else kernel.round_trip

    def _key(self, column: str, session: Session, connection: Socket | Stream, figures: _Figures) -> Any:
        match column:
            case "since":
                return session.since
            case "sub":
                return session.subject
            case "address":
                return self._address(session, connection)
            case "transport":
                return _transport(connection)
            case "subscriptions":
                return self._hub.count_channels(session.sid) + self._tables.count_of(session.sid)
            case "slow":
                return figures.buffered, figures.stuck, figures.replay_lag or 0
            case "node":  # the same for all of a process
                return 0
        return getattr(figures, column)

    def _shown(self, figures: _Figures) -> dict[str, Any]:
        return {
            "buffered": figures.buffered,
            "stuck": round(figures.stuck, 3),
            "replay_lag": figures.replay_lag,
            "bytes_in": figures.bytes_in,
            "bytes_out": figures.bytes_out,
            "total_in": figures.total_in,
            "total_out": figures.total_out,
            "messages_in": figures.messages_in,
            "round_trip": figures.round_trip,
        }

    def _clean(self) -> None:
        """Forget connections at which nobody has looked for a while."""
        now = time.monotonic()
        if now - self._cleaned_at > self.linger:
            self._cleaned_at = now
            for sid in [sid for sid, looks in self._looks.items() if now - looks.last.at > self.linger]:
                del self._looks[sid]


def merge(rows: Sequence[dict[str, Any]], listing: Listing) -> list[dict[str, Any]]:
    """Return the rows of several processes in the order of a listing."""

    def key(row: dict[str, Any]) -> Any:
        if listing.sort == "slow":
            return row["buffered"], row["stuck"], row["replay_lag"] or 0
        if listing.sort == "node":
            return row["node"], -1 if row["worker"] is None else row["worker"]
        return row[listing.sort]

    return ordered(rows, key, listing.descending, then=lambda row: row["sid"])


def validated(listing: Listing) -> Listing:
    """Return a listing of clients, by the newest ones unless it has a column."""
    return listing if listing.sort else replace(listing, sort="since", descending=True)


def _transport(connection: Socket | Stream) -> str:
    if isinstance(connection, Stream):
        return "stream"
    return "polling" if connection.connection is None else "websocket"


def _restarted(base: _Look, now: _Look) -> bool:
    """Return whether counts have begun anew: a client that polled has a WebSocket now."""
    return (base.received is None) is not (now.received is None) or (now.received or 0) < (base.received or 0)


def _rate(since: float, before: int | None, now: float, count: int | None, least: float) -> float | None:
    if before is None or count is None or now - since < least:
        return None
    return round((count - before) / (now - since), 3)
