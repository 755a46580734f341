"""Channels in the inspector: the list of all processes' channels and those of the log, sorted and limited here."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from socketio_pg.control import local_channels
from socketio_pg.control.control import Control, Listed
from socketio_pg.core import green
from socketio_pg.core.channels import match_pattern
from socketio_pg.core.errors import DatabaseError, LogNotInstalledError
from socketio_pg.core.listing import Listing, cut, matches, ordered
from socketio_pg.core.patterns import is_pattern
from socketio_pg.core.rules import Rules
from socketio_pg.inspector import requests
from socketio_pg.inspector.routes import Routes
from socketio_pg.log import channel_reader
from socketio_pg.log.channel_reader import Newest
from socketio_pg.postgres.looking import Looking

#: The columns by which the list can be sorted.
COLUMNS = (
    "channel", "subscribers", "messages_in", "messages_out", "bytes_in", "last_position", "last_at", "members",
)  # fmt: skip


class ChannelsApi:
    """The request for the list of channels."""

    #: Seconds for which the channels of the log are remembered; the listed ones are always read.
    remembered = 10.0

    def __init__(self, control: Control, looking: Looking, rules: Rules) -> None:
        self._control = control
        self._looking = looking
        self._rules = rules
        self._log: tuple[dict[str, int], bool] = {}, True
        self._log_read_at = float("-inf")

    def add_to(self, routes: Routes) -> None:
        """Add the request."""
        routes.get("channels", self.channels)

    def channels(self) -> dict[str, Any]:
        """``GET channels``."""
        listing = requests.listing(COLUMNS, "-messages_in")
        in_log, problem = self._guarded(self._channels_of_log)
        positions, all_of_log = in_log or ({}, True)
        members: dict[str, int] = {}
        if listing.sort == "members" and problem is None:
            found, problem = self._guarded(lambda: self._most_members(listing.first))
            members = found or {}
        known = [name for name in dict.fromkeys([*positions, *members]) if matches(listing.search, (name,))]
        candidates = _candidates(listing, known, members if listing.sort == "members" else positions)
        listed = self._measured(listing, candidates, requests.seconds("measure"))
        measured = listed.found["measured"]
        rows = {row["channel"]: _row(row, measured) for row in listed.rows}
        for name in candidates:
            rows.setdefault(name, _row({"channel": name}, measured))
        if listing.sort in ("last_position", "last_at", "members"):
            problem = self._add_database(list(rows.values()), problem)
        else:
            for name, row in rows.items():
                row["last_position"] = max(row["last_position"] or 0, positions.get(name, 0)) or None
        ranked = ordered(rows.values(), lambda row: row[listing.sort], listing.descending, then=_then)
        chosen = cut(ranked, listing)
        problem = self._add_database(chosen, problem)
        for row in chosen:
            self.add_rule(row)
        return {
            "channels": chosen,
            "total": max(listed.total, len(rows.keys() | set(known))),
            "complete": listed.complete and all_of_log,
            "measured": measured,
            "log": {"read": problem is None, "problem": problem},
        } | listed.answered()

    def one(self, listed: Listed, name: str) -> tuple[dict[str, Any], str | None]:
        """Return one channel as the list shows it, and why the database has not told about it."""
        [merged] = local_channels.merge([{"channels": listed.rows}]).values()
        row = _row(merged, listed.found["measured"])
        problem = self._add_database([row], None)
        self.add_rule(row)
        return row, problem

    def add_rule(self, row: dict[str, Any]) -> None:
        """Add what the rules say of a channel."""
        name = row["channel"]
        if is_pattern(name):
            row |= {"rule": None, "durable": None, "retained": None}
            return
        rule = self._rules.of(name)
        matching = (one for one in self._rules.sourced() if match_pattern(one.pattern, name))
        first = next(matching, None)
        row |= {
            "rule": None if first is None else {"pattern": first.pattern, "source": first.source},
            "durable": rule.durable,
            "retained": rule.retained,
        }

    def _measured(self, listing: Listing, names: Sequence[str], seconds: float) -> Listed:
        listed = self._control.channels(listing, names)
        if listed.found["measured"] < seconds:
            green.sleep(seconds - listed.found["measured"])
            listed = self._control.channels(listing, names)
        return listed

    def _channels_of_log(self) -> tuple[dict[str, int], bool]:
        if time.monotonic() - self._log_read_at > self.remembered:
            self._log = self._looking.run(channel_reader.read_all)
            self._log_read_at = time.monotonic()
        return self._log

    def _most_members(self, limit: int) -> dict[str, int]:
        return self._looking.run(lambda connection: channel_reader.most_members(connection, limit))

    def _add_database(self, rows: Sequence[dict[str, Any]], problem: str | None) -> str | None:
        """Add the newest message of each channel, and its members. Return why the database does not tell."""
        wanted = [row["channel"] for row in rows if not row["pattern"]]
        newest: dict[str, Newest] = {}
        members: dict[str, int] | None = None
        if problem is None and wanted:
            found, problem = self._guarded(
                lambda: self._looking.run(
                    lambda connection: (
                        channel_reader.read_newest(connection, wanted),
                        channel_reader.count_members(connection, wanted),
                    )
                )
            )
            newest, members = found or ({}, None)
        for row in rows:
            row["members"] = None if members is None or row["pattern"] else members.get(row["channel"], 0)
            _add_newest(row, newest.get(row["channel"]))
        return problem

    @staticmethod
    def _guarded(read: Callable[[], Any]) -> tuple[Any, str | None]:
        """Return what ``read()`` returns, or None and why the database does not tell."""
        try:
            return read(), None
        except (DatabaseError, LogNotInstalledError) as error:
            return None, str(error)  # the operator may read its detail


def _candidates(listing: Listing, known: Sequence[str], values: Mapping[str, int]) -> list[str]:
    """Return those of the database's channels that may be among the first: where they decide nothing, the newest."""
    if listing.sort == "channel":
        return sorted(known, reverse=listing.descending)[: listing.first]
    decides = listing.sort in ("last_position", "last_at", "members")
    return ordered(known, values.get, listing.descending or not decides, then=str)[: listing.first]


def _row(found: dict[str, Any], measured: float) -> dict[str, Any]:
    """Return the row of a channel; a channel that no process knows has no subscribers, and no rates above 0."""
    kinds = {kind: found.get(kind, 0) for kind in ("sockets", "streams", "python", "patterns")}
    row = {
        "channel": found["channel"],
        "pattern": is_pattern(found["channel"]),
        "subscribers": kinds["sockets"] + kinds["streams"] + kinds["python"],
        "by_kind": kinds,
    }
    for rate in ("messages_in", "messages_out", "bytes_in"):
        value = found.get(rate)
        row[rate] = None if measured < 1 else round(value or 0.0, 3)
    return row | {name: found.get(name) for name in ("last_position", "last_at", "last_bytes")}


def _add_newest(row: dict[str, Any], newest: Newest | None) -> None:
    """Add the newest message of the log, unless a later one was seen: of the log, or a NOTIFY."""
    if newest is None or (row["last_at"] or 0.0) > newest.published_at + 1.0:
        return
    row["last_position"], row["last_bytes"] = newest.position, newest.size
    row["last_at"] = round(newest.published_at, 3)


def _then(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return the second order of the list: the channels with most subscribers, then those with the newest messages."""
    return -row["subscribers"], -(row["last_position"] or 0), row["channel"]
