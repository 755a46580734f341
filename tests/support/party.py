"""Processes with presence in the test's own process, on a real database and a wire that can be cut."""

import contextlib
from typing import Any

from socketio_pg.core import green
from socketio_pg.postgres.database import Database, wait_green
from socketio_pg.presence.presence import Presence
from socketio_pg.presence.roster import Roster
from tests.support.bus import End, Quick, Wire, wait
from tests.support.log_database import LogDatabase
from tests.support.watcher import Watcher


class Guest:
    """One process. ``told`` are the changes that its watchers were told, in words, by channel."""

    def __init__(self, url: str, end: End, most: int, grace: float, announce: str | None) -> None:
        self.end = end
        self.bus = Quick(end)
        database = Database(url)
        database.connect_timeout = 1.0
        self.presence = Presence(database, self.bus, most, grace, announce)
        self.presence.tick, self.presence.incomplete, self.presence.settle = 0.02, 0.2, 1.0
        table = self.presence._table
        table.lease, table.beat, table.pause, table.timeout = 4.0, 0.2, 0.02, 1.0
        table.forbearance = 1.0
        self.observed: list[tuple[str, str]] = []
        self.presence.observe(lambda event, channel, _: self.observed.append((event, channel)))
        self.watchers: dict[str, Watcher] = {}
        self.told: dict[str, list[str]] = {}
        self._due: set[str] = set()
        self.presence.receive(self._changed)

    def watch(self, channel: str) -> None:
        self.presence.roster(channel)
        assert self.presence.watch(channel) is not None
        self.told[channel] = []
        self.watchers[channel] = Watcher(self.presence.state(channel))

    def states(self, channel: str) -> dict[str, list[Any]]:
        """Return the states of each member's connections, as the watcher knows them."""
        members = self.watchers[channel].members
        assert members is not None
        return {key: [meta["state"] for meta in one["metas"]] for key, one in members.items()}

    def _changed(self, channel: str) -> None:
        if channel not in self._due:
            self._due.add(channel)
            green.call_later(0.03, lambda: green.run_soon(self._tell, channel))

    def _tell(self, channel: str) -> None:
        self._due.discard(channel)
        roster: Roster | None = self.presence.watched(channel)
        difference = None if roster is None else roster.difference()
        if roster is None or difference is None:
            return
        if difference.restarts:
            self.watchers[channel].replace(roster.show())
            return
        self.watchers[channel].apply(difference.to_wire())
        for name, members in zip(("joined", "updated", "left"), difference.members or (), strict=False):
            self.told[channel] += [f"{name} {key}" for key in members]

    def die(self) -> None:
        """End without a word, as a process that is killed."""
        self.bus.die()
        self.presence._stopped = True
        self.presence._housekeeper.stop()
        table = self.presence._table
        table._stopped = True
        table._worker.stop()
        table._hang_up()


class Party:
    """A database with the schema, and the processes on it."""

    def __init__(self, database: LogDatabase) -> None:
        wait_green()
        self.database = database
        self.wire = Wire()
        self.guests: list[Guest] = []
        #: PRESENCE_EVENTS of the next processes.
        self.announce: str | None = None

    def guest(self, url: str | None = None, most: int = 100, grace: float = 60.0) -> Guest:
        self.guests.append(Guest(url or self.database.url, self.wire.end(), most, grace, self.announce))
        return self.guests[-1]

    def wait_states(self, channel: str, expected: dict[str, list[Any]], *guests: Guest) -> None:
        """Wait until the watchers of these processes, or of all, know exactly these members."""
        for guest in guests or self.guests:
            with contextlib.suppress(AssertionError):
                wait(lambda guest=guest: guest.states(channel) == expected, "the watchers know the members")  # type: ignore[misc]
            assert guest.states(channel) == expected

    def rows(self, channel: str) -> list[tuple[Any, ...]]:
        """Return key and state of the rows in the view."""
        sql = "SELECT key, state FROM socketio_pg.presence WHERE channel = %s ORDER BY key, joined_at"
        return self.database.sql(sql, channel)

    def expire(self, *guests: Guest) -> None:
        """Let the time pass after which processes count as dead."""
        ids = [guest.bus.own.id for guest in guests]
        sql = "UPDATE socketio_pg.presence_process SET expires_at = now() WHERE id = ANY(%s::uuid[])"
        self.database.sql(sql, ids)

    def close(self) -> None:
        for guest in self.guests:
            guest.die()
