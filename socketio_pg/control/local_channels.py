"""Describes the channels of this process: their subscriptions, and what was counted of them while somebody looks."""

from collections.abc import Sequence
from typing import Any

from socketio_pg.access.sessions import Sessions
from socketio_pg.control.local_clients import LocalClients
from socketio_pg.core import green
from socketio_pg.core.channels import RESERVED_PREFIX, match_pattern
from socketio_pg.core.listing import Listing, matches, ordered
from socketio_pg.core.patterns import is_pattern
from socketio_pg.pubsub.hub import Hub
from socketio_pg.pubsub.tally import Rate, Tally
from socketio_pg.streams.streams import Streams

#: The columns by which a process chooses its first channels.
COLUMNS = ("channel", "subscribers", "messages_in", "messages_out", "bytes_in", "last_position", "last_at")
#: Channels that one process lists at most.
MAX_CHANNELS = 2_000
#: Subscribers of one channel that are shown.
MAX_SUBSCRIBERS = 100
#: Channels that are looked at before other green threads run.
SLICE = 500


class LocalChannels:
    """The channels of this process. Listing them begins to count their messages."""

    def __init__(self, hub: Hub, tally: Tally, sessions: Sessions, clients: LocalClients) -> None:
        self._hub = hub
        self._tally = tally
        self._sessions = sessions
        self._clients = clients

    def list(self, listing: Listing, names: Sequence[str] = ()) -> dict[str, Any]:
        """Return the first ``channels`` of a listing, and those of ``names`` that this process knows.

        ``total`` is the number that the search finds, ``complete`` tells if all of them are here, and ``measured`` for
        how many seconds messages have been counted.
        """
        self._tally.look()
        rates = dict(self._tally.all())
        found = []
        known = dict.fromkeys([*sorted(self._hub.channels()), *rates])
        for number, name in enumerate(known, 1):
            if not name.startswith(RESERVED_PREFIX) and matches(listing.search, (name,)):
                found.append(name)
            if number % SLICE == 0:
                green.sleep()
        total = len(found)
        first = min(listing.first, MAX_CHANNELS)
        if total > first:
            patterns = self._rates_of_patterns(rates)
            found = ordered(
                found,
                lambda name: self._key(listing.sort, name, patterns.get(name) or rates.get(name)),
                listing.descending,
                then=lambda name: name,
            )[:first]
        else:
            patterns = self._rates_of_patterns(rates)
        chosen = dict.fromkeys([*found, *(name for name in names if name in known)])
        rows = []
        for number, name in enumerate(chosen, 1):
            rows.append(self._describe(name, patterns.get(name) or rates.get(name)))
            if number % 50 == 0:
                green.sleep()
        return {
            "channels": rows,
            "total": total,
            "complete": total <= len(found),
            "measured": round(self._tally.seconds(), 3),
        }

    def describe(self, name: str) -> dict[str, Any]:
        """Return one channel, or pattern, with some of its subscribers."""
        listed = self.list(Listing(search="", sort="channel", limit=0), [name])
        found: dict[str, Any] = listed["channels"][0] if listed["channels"] else self._describe(name, None)
        subscribers = self._hub.subscribers(name)
        clients = [self._subscriber(one, name) for one in sorted(subscribers, key=str)[:MAX_SUBSCRIBERS]]
        more = len(subscribers) - len(clients)
        return found | {"clients": clients, "clients_more": more, "measured": listed["measured"]}

    def rates_of(self, patterns: Sequence[str]) -> tuple[dict[str, float], float]:
        """Return the messages per second of the channels that match each pattern, or have its name, and for how long
        they were counted; no rates in the first second.
        """
        self._tally.look()
        found = dict.fromkeys(patterns, 0.0)
        for channel, rate in self._tally.all():
            for pattern in patterns:
                if rate.messages_in is not None and match_pattern(pattern, channel):
                    found[pattern] += rate.messages_in
        seconds = self._tally.seconds()
        return found if seconds >= self._tally.least else {}, seconds

    def _describe(self, name: str, rate: Rate | None) -> dict[str, Any]:
        sockets = streams = python = 0
        for subscriber in self._hub.subscribers(name):
            if not isinstance(subscriber, str):
                python += 1
            elif Streams.owns(subscriber):
                streams += 1
            else:
                sockets += 1
        through = 0
        if not is_pattern(name):
            through = sum(map(self._hub.count_subscribers, self._hub.patterns.matching(name)))
        return {
            "channel": name,
            "sockets": sockets,
            "streams": streams,
            "python": python,
            "patterns": through,
            "messages_in": None if rate is None else rate.messages_in,
            "messages_out": self._messages_out(name, rate),
            "bytes_in": None if rate is None else rate.bytes_in,
            "last_at": None if rate is None else round(rate.last_at, 3),
            "last_bytes": None if rate is None else rate.last_bytes,
            "last_position": None if rate is None else rate.position,
        }

    def _messages_out(self, name: str, rate: Rate | None) -> float | None:
        """Return messages per second times the subscriptions that get them now, before filters."""
        if rate is None or rate.messages_in is None:
            return None
        names = (name,) if is_pattern(name) else self._hub.names(name)
        return rate.messages_in * sum(map(self._hub.count_subscribers, names))

    def _subscriber(self, subscriber: object, name: str) -> dict[str, Any]:
        if not isinstance(subscriber, str):
            return {"sid": None, "sub": None, "kind": "python", "filter": None, "replay_lag": None}
        session = self._sessions.get(subscriber)
        return {
            "sid": subscriber,
            "sub": None if session is None else session.subject,
            "kind": "stream" if Streams.owns(subscriber) else "socket",
            "filter": self._clients.filter_of(subscriber, name),
            "replay_lag": self._clients.replay_lag(subscriber),
        }

    def _rates_of_patterns(self, rates: dict[str, Rate]) -> dict[str, Rate]:
        """Return what was counted of the channels that match each subscribed pattern, together."""
        found: dict[str, Rate] = {}
        if not self._hub.patterns:
            return found
        for number, (channel, rate) in enumerate(rates.items(), 1):
            for pattern in self._hub.patterns.matching(channel):
                found[pattern] = _sum(found[pattern], rate) if pattern in found else rate
            if number % SLICE == 0:
                green.sleep()
        return found

    def _key(self, column: str, name: str, rate: Rate | None) -> Any:
        match column:
            case "channel":
                return name
            case "messages_in" | "bytes_in" | "last_at":
                return None if rate is None else getattr(rate, column)
            case "messages_out":
                return self._messages_out(name, rate)
            case "last_position":
                return None if rate is None else rate.position
        return self._hub.count_subscribers(name)


def _sum(one: Rate, other: Rate) -> Rate:
    newer = one if one.last_at >= other.last_at else other
    return Rate(
        _add(one.messages_in, other.messages_in),
        _add(one.bytes_in, other.bytes_in),
        newer.last_at,
        newer.last_bytes,
        newer.position,
    )


def _add(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else one + other


def merge(answers: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the channels of several processes, by name.

    Subscriptions add up, and so do messages out. All processes that hear a channel hear the same messages: of these
    the one that has counted most counts.
    """
    found: dict[str, dict[str, Any]] = {}
    for answer in answers:
        for row in answer["channels"]:
            known = found.get(row["channel"])
            if known is None:
                found[row["channel"]] = dict(row)
                continue
            for kind in ("sockets", "streams", "python", "patterns"):
                known[kind] += row[kind]
            known["messages_out"] = _add(known["messages_out"], row["messages_out"])
            for rate in ("messages_in", "bytes_in"):
                known[rate] = max((one for one in (known[rate], row[rate]) if one is not None), default=None)
            if row["last_at"] is not None and (known["last_at"] is None or row["last_at"] > known["last_at"]):
                known |= {name: row[name] for name in ("last_at", "last_bytes", "last_position")}
    return found
