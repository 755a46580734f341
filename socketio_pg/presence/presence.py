"""Presence of one process: the memberships of its clients, and the members of the channels that something looks at.

Each process writes the memberships of its clients to the database, and then tells the other processes. The database has
the truth: a process that starts to look at a channel, or has missed something, reads its rows.
"""

import dataclasses
import logging
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from socketio_pg.cluster.bus import Bus
from socketio_pg.cluster.processes import ProcessId
from socketio_pg.core import green, metrics
from socketio_pg.core.channels import validate_channel
from socketio_pg.core.errors import DatabaseUnavailableError, SocketIOPGError
from socketio_pg.postgres.database import Database
from socketio_pg.presence.memberships import Membership, Memberships
from socketio_pg.presence.observers import Observer, Observers
from socketio_pg.presence.roster import Change, Meta, Roster, to_body, to_change
from socketio_pg.presence.table import PresenceTable, Written

logger = logging.getLogger("socketio_pg.presence")

#: The kind of the messages on the bus.
_KIND = "presence"


@dataclass(eq=False, slots=True)
class _Open:
    """A channel that something looks at."""

    roster: Roster
    watchers: int = 0
    #: When somebody last asked for it, and when it is read again because something was missed (monotonic).
    used_at: float = field(default_factory=time.monotonic)
    read_at: float | None = None
    #: Its version when it was found to differ from the database's.
    behind: int | None = None
    #: Whether it was read while the database may have been incomplete.
    unsettled: bool = False
    #: Set when it was read, or with the error because of which it cannot be read.
    loaded: green.Event = field(default_factory=green.Event)


class Presence:
    """The presence of one process. ``most``: PRESENCE_MAX; ``grace``: PRESENCE_GRACE, in seconds.

    ``announce`` is a channel of the log in which the database announces events; or None. ``announce_members``: those of
    members, too.
    """

    #: Seconds to wait for the members of a channel; and for which a channel is kept that nobody looks at: longer than a
    #: `subscribe` waits.
    patience, linger = 3.0, 30.0
    #: Seconds by which the clocks of two nodes may differ, for a person who returns on another one.
    clocks = 2.0
    #: Seconds between two looks at what is due; after which a roster that has missed a change is read again; for which
    #: members that the database does not have are kept after it has lost those of this process.
    tick, incomplete, settle = 0.25, 1.0, 8.0

    def __init__(
        self,
        database: Database,
        bus: Bus,
        most: int,
        grace: float,
        announce: str | None = None,
        announce_members: bool = False,
    ) -> None:
        self._bus = bus
        self._most = most
        self._grace = grace
        self._own = Memberships()
        self._open: dict[str, _Open] = {}
        #: Those of which a change may have been missed.
        self._doubtful: set[str] = set()
        self._observers = Observers(announce is not None and announce_members)
        self._table = PresenceTable(database, lambda: bus.own, self, announce, self._observers.want_members)
        self._receivers: list[Callable[[str], object]] = []
        #: The processes that have members, and those that were heard since the database was last asked for them.
        self._processes: set[str] = set()
        self._heard: set[str] = set()
        #: Until when memberships without a connection stay at least, and the database may be incomplete (monotonic).
        self._drained_at = self._settled_at = float("-inf")
        self._housekeeper = green.Worker()
        self._stopped = False
        bus.receive(_KIND, self._hear)
        bus.on_gap(self._missed)

    # -- for programs --------------------------------------------------------------------------------------------------

    def members(self, channel: str) -> list[dict[str, Any]]:
        """Return the members of a channel on all nodes, as docs/presence.md describes them. May wait.

        Raises :class:`InvalidChannelError`, :class:`DatabaseUnavailableError`, :class:`LogNotInstalledError`.
        """
        found: list[dict[str, Any]] = orjson.loads(orjson.dumps(self.roster(channel).members()))
        return found

    def summary(self, channel: str, *, only_count: bool = False) -> dict[str, Any]:
        """Return ``{channel, count, members?, stale?}`` for a program that is no client. May wait; raises as above.

        Without members if there are more than PRESENCE_MAX, or with ``only_count``.
        """
        roster = self.roster(channel)
        found: dict[str, Any] = {"channel": channel, "count": roster.count}
        if not only_count and roster.count <= self._most:
            found["members"] = roster.members()
        return found | {"stale": True} if self.stale else found

    def count(self, channel: str) -> int:
        """Return the number of members of a channel on all nodes. May wait; raises as :meth:`members`."""
        return self.roster(channel).count

    def observe(self, observer: Observer, members: Callable[[], bool] = lambda: False) -> None:
        """Call ``observer`` with events: always those of channels, and those of members while ``members()`` is true.

        Of all processes only one is called for each event: the one that has written it. The events of a moment have
        one green thread, in which the observer may wait. A crash of PostgreSQL, or the end of that process at this
        moment, may lose one, or repeat one.
        """
        self._observers.add(observer, members)

    @property
    def stale(self) -> bool:
        """Whether the database cannot be reached, so that members of other processes are the last known ones."""
        return self._table.failed_at is not None

    # -- memberships of this process: none of these waits --------------------------------------------------------------

    @property
    def channels(self) -> int:
        """The number of channels whose members this process keeps up to date."""
        return len(self._open)

    @property
    def memberships(self) -> int:
        """The number of memberships of this process's clients."""
        return len(self._own)

    def get(self, client: str, channel: str) -> Membership | None:
        """Return the membership of a client in a channel."""
        return self._own.get(client, channel)

    def own(self) -> list[Membership]:
        """Return the memberships of all clients of this process."""
        return list(self._own)

    def of_client(self, client: str) -> list[Membership]:
        """Return the memberships of a client."""
        return self._own.of_client(client)

    def join(
        self, client: str, channel: str, key: str, state: str, *, ref: str | None = None, joined_at: int | None = None
    ) -> Membership:
        """Make a client a member, or change its state. Returns its membership.

        ``state`` is JSON text. ``ref`` and ``joined_at`` are those of its membership in another process.
        """
        found = self._own.get(client, channel)
        if found is not None and found.key == key:
            self._own.found(found)
            if found.state != state:
                found.state = state
                self._put(found)
                metrics.presence_changes.labels("update").inc()
            return found
        if found is not None:
            self._remove(found, "leave")
        now = int(time.time() * 1000)
        membership = Membership(
            channel, key, ref or secrets.token_urlsafe(9), client, state, now if joined_at is None else joined_at
        )
        # A person who returns takes the place of a connection that was lost.
        lost = self._own.lost_of(channel, key)
        self._own.add(membership)
        if lost is not None:
            self._remove(lost, "return")
        self._put(membership)
        metrics.presence_changes.labels("join").inc()
        return membership

    def leave(self, client: str, channel: str) -> bool:
        """End a membership. Return whether there was one."""
        found = self._own.get(client, channel)
        if found is None:
            return False
        self._remove(found, "leave")
        return True

    def leave_all(self, client: str) -> None:
        """End all memberships of a client."""
        for membership in self._own.of_client(client):
            self._remove(membership, "leave")

    def leave_as(self, key: str) -> None:
        """End all memberships of a person, also those whose connection is lost."""
        for membership in self._own:
            if membership.key == key:
                self._remove(membership, "leave")

    def lose(self, client: str) -> None:
        """Note that the connection of a client is lost. Its memberships end after a while, unless it returns."""
        now = time.monotonic()
        for membership in self._own.of_client(client):
            self._own.lose(membership, now)
        self._keep_house()

    def drain(self, seconds: float) -> None:
        """Give the clients ``seconds`` more to return: this process disconnects them all, and they go elsewhere."""
        self._drained_at = time.monotonic() + seconds + self._grace

    def stop(self) -> None:
        """Write the last changes. Lost members leave after their grace time. Waits for the database."""
        self._stopped = True
        self._housekeeper.stop()
        self._table.stop(self._grace)

    def _put(self, membership: Membership) -> None:
        meta = membership.to_meta(self._bus.own.id)
        self._table.busy = True
        self._table.put(membership.channel, meta)
        opened = self._open.get(membership.channel)
        if opened is not None:
            opened.roster.put(meta)
            self._changed(membership.channel)
        self._keep_house()

    def _remove(self, membership: Membership, reason: str) -> None:
        metrics.presence_changes.labels(reason).inc()
        self._own.remove(membership)
        self._table.remove(membership.channel, membership.ref)
        opened = self._open.get(membership.channel)
        if opened is not None:
            opened.roster.remove(membership.ref)
            self._changed(membership.channel)

    # -- channels that something looks at ------------------------------------------------------------------------------

    def receive(self, receiver: Callable[[str], object]) -> None:
        """Call ``receiver(channel)`` when the roster of a watched channel has changed. It must not wait."""
        self._receivers.append(receiver)

    def roster(self, channel: str) -> Roster:
        """Return the roster of a channel; it is kept up to date for some seconds, or while it is watched. May wait.

        Raises as :meth:`members`.
        """
        opened = self._open.get(validate_channel(channel))
        if opened is None:
            opened = self._open[channel] = _Open(Roster(self._most))
            for membership in self._own.of_channel(channel):
                opened.roster.put(membership.to_meta(self._bus.own.id))
            self._table.busy = True
            self._table.read(channel)
            self._keep_house()
        opened.used_at = time.monotonic()
        if opened.roster.known is None:
            try:
                error = opened.loaded.wait(self.patience)
            except green.TimedOut:
                problem = "the members of this channel cannot be read at the moment"
                raise DatabaseUnavailableError(problem, channel=channel) from None
            if error is not None:
                raise type(error)(error.message, channel=channel)
        return opened.roster

    def state(self, channel: str) -> dict[str, Any]:
        """Return the state of a channel that :meth:`roster` has loaded, as clients get it. Does not wait."""
        opened = self._open[channel]
        if not opened.watchers:
            opened.roster.begin()
        body = opened.roster.show()
        return body | {"stale": True} if self.stale else body

    def watch(self, channel: str) -> Roster | None:
        """Keep the roster of a channel, which :meth:`roster` has returned, up to date until :meth:`unwatch`.

        Does not wait. Returns None if it has been closed since.
        """
        opened = self._open.get(channel)
        if opened is None or opened.roster.known is None:
            return None
        if not opened.watchers:
            opened.roster.begin()
        opened.watchers += 1
        return opened.roster

    def watched(self, channel: str) -> Roster | None:
        """Return the roster of a channel that is watched."""
        opened = self._open.get(channel)
        return None if opened is None or not opened.watchers else opened.roster

    def unwatch(self, channel: str) -> None:
        """Undo one :meth:`watch`."""
        opened = self._open.get(channel)
        if opened is not None and opened.watchers:
            opened.watchers -= 1
            opened.used_at = time.monotonic()

    def _changed(self, channel: str) -> None:
        opened = self._open.get(channel)
        if opened is not None and opened.watchers and opened.roster.changed:
            for receiver in self._receivers:
                receiver(channel)

    # -- from the database: see Keeper ---------------------------------------------------------------------------------

    def written(
        self, put: Sequence[tuple[str, Meta]], gone: Sequence[tuple[str, str]], written: Sequence[Written]
    ) -> None:
        puts: dict[str, list[Meta]] = {}
        gones: dict[str, list[str]] = {}
        for channel, meta in put:
            puts.setdefault(channel, []).append(meta)
        for channel, ref in gone:
            gones.setdefault(channel, []).append(ref)
        own = self._bus.own.id
        changes = {
            one.channel: Change(own, one.link, puts.get(one.channel, ()), gones.get(one.channel, ())) for one in written
        }
        self._publish(changes, written)

    def swept(self, dead: Sequence[str], written: Sequence[Written]) -> None:
        logger.info("found %d dead processes, and removed their members of %d channels", len(dead), len(written))
        metrics.presence_swept.inc(len(dead))
        own = self._bus.own.id
        self._publish({one.channel: Change(own, one.link, dead=dead) for one in written}, written)

    def _publish(self, changes: Mapping[str, Change], written: Sequence[Written]) -> None:
        """Tell the other processes what this one has written, and note it."""
        if changes:
            bodies = {channel: to_body(change) for channel, change in changes.items()}
            self._bus.tell(_KIND, bodies)
        for channel, change in changes.items():
            opened = self._open.get(channel)
            if opened is not None:
                # Its own connections are there already, and may have changed again since.
                self._apply(channel, opened, Change(change.process, change.link, dead=change.dead))
        self._observers.tell_soon(written)

    def reading(self, channels: Sequence[str]) -> None:
        for channel in channels:
            if channel in self._open:
                self._open[channel].roster.begin_read()

    def _apply(self, channel: str, opened: _Open, change: Change) -> None:
        opened.roster.apply(change)
        if opened.roster.incomplete:
            self._doubtful.add(channel)
        self._changed(channel)

    def read(self, channel: str, version: int, metas: Sequence[Meta]) -> None:
        opened = self._open.get(channel)
        for meta in metas:
            self._processes.add(meta.process)
            self._heard.add(meta.process)
            self._taken(channel, meta)
        if opened is None:
            return
        opened.unsettled = time.monotonic() < self._settled_at
        opened.roster.load(version, metas, self._bus.own.id, keep=opened.unsettled)
        opened.behind = opened.read_at = None
        if opened.unsettled or opened.roster.incomplete:
            self._doubtful.add(channel)
        opened.loaded.send()
        self._changed(channel)

    def failed(self, error: SocketIOPGError) -> None:
        if not isinstance(error, DatabaseUnavailableError):
            for channel, opened in list(self._open.items()):
                if opened.roster.known is None:
                    opened.loaded.send(error)
                    del self._open[channel]

    def asked(self) -> Sequence[str]:
        return [channel for channel, opened in self._open.items() if opened.roster.known is not None]

    def versions(self, versions: Mapping[str, int]) -> None:
        for channel, version in versions.items():
            opened = self._open.get(channel)
            if opened is None or opened.roster.known is None:
                continue
            if opened.roster.known == version:
                opened.behind = None
            else:
                opened.behind = opened.roster.known
                self._doubtful.add(channel)

    def processes(self, known: Collection[str]) -> None:
        heard, self._heard = self._heard, set()
        gone = self._processes - set(known) - heard
        if time.monotonic() < self._settled_at:
            return  # the others register again
        for process in gone:
            self._processes.discard(process)
            for channel, opened in list(self._open.items()):
                opened.roster.drop(process)
                self._changed(channel)

    def lost(self) -> None:
        self._settled_at = time.monotonic() + self.settle
        for membership in self._own:
            self._table.put(membership.channel, membership.to_meta(self._bus.own.id))
        for channel, opened in self._open.items():
            if opened.roster.known is not None:
                self._table.read(channel)

    # -- from other processes ------------------------------------------------------------------------------------------

    def _hear(self, sender: ProcessId, body: Any) -> None:
        self._processes.add(sender)
        self._heard.add(sender)
        for channel, fields in body.items():
            opened = self._open.get(channel)
            if opened is None and not self._own.has_channel(channel):
                continue
            change = to_change(sender, fields)
            for meta in change.put:
                self._taken(channel, meta)
            if opened is not None:
                # Taken for dead itself, it writes its members again, and they stay for its clients.
                dead = [process for process in change.dead if process != self._bus.own.id]
                self._apply(channel, opened, dataclasses.replace(change, dead=dead))

    def _missed(self) -> None:
        """Messages may have been missed."""
        if self._open:
            self._table.compare()

    def _taken(self, channel: str, meta: Meta) -> None:
        """Another process has a connection: end the membership that it continues."""
        own = self._own.find(channel, meta.ref)
        if own is not None:
            # A recovered session.
            self._own.remove(own)
            self._table.forget(channel, meta.ref)
            return
        lost = self._own.lost_of(channel, meta.key)
        if lost is not None and lost.lost_at is not None:
            lost_at = time.time() - (time.monotonic() - lost.lost_at)
            if meta.joined_at / 1000 > lost_at - self.clocks:
                self._remove(lost, "return")

    # -- what is due ---------------------------------------------------------------------------------------------------

    def _keep_house(self) -> None:
        if not self._stopped:
            self._housekeeper.start(self._run)

    def _run(self) -> None:
        looked_at = time.monotonic()
        while self._open or len(self._own):
            green.sleep(self.tick)
            now = time.monotonic()
            if now >= self._drained_at:
                for membership in self._own.lost_until(now - self._grace):
                    self._remove(membership, "expire")
            for channel in list(self._doubtful):
                self._check(channel, now)
            if now - looked_at > self.linger / 5:
                looked_at = now
                for channel, opened in list(self._open.items()):
                    if opened.watchers:
                        continue
                    # A program may ask for its members for days.
                    opened.roster.begin()
                    if now - opened.used_at > self.linger:
                        del self._open[channel]
        self._table.busy = False

    def _check(self, channel: str, now: float) -> None:
        """Read a channel again if one of its changes was missed."""
        opened = self._open.get(channel)
        if opened is not None and opened.behind is not None and opened.roster.known != opened.behind:
            opened.behind = None  # the change was on its way
        if opened is None or not (opened.unsettled or opened.roster.incomplete or opened.behind is not None):
            self._doubtful.discard(channel)
            if opened is not None:
                opened.read_at = None
        elif opened.read_at is None:
            opened.read_at = max(now + self.incomplete, self._settled_at if opened.unsettled else 0.0)
        elif now >= opened.read_at:
            opened.read_at = now + self.incomplete
            metrics.presence_missed.inc()
            self._table.read(channel)
