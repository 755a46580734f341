"""The members of one channel as this process knows them, and what has changed since its clients were told. No I/O.

Each change in the database gives the channel a new version. Messages of other processes say which one they lead to and
from which one, so that a roster that has missed one finds out, and is read again.
"""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

#: Keys of clients without a token begin with this; a token whose ``sub`` does cannot join.
ANONYMOUS = "anonymous:"
#: The connections of a member that clients see: the oldest ones.
MAX_METAS = 20


@dataclass(frozen=True, slots=True)
class Meta:
    """One connection of a member. ``state`` is JSON text, ``joined_at`` milliseconds since 1970.

    ``process`` has the connection.
    """

    ref: str
    key: str
    client: str
    state: str
    joined_at: int
    process: str = field(default="", compare=False)

    def to_wire(self) -> dict[str, Any]:
        joined_at = datetime.datetime.fromtimestamp(self.joined_at / 1000, datetime.timezone.utc)
        return {
            "ref": self.ref,
            "client": self.client,
            "state": orjson.Fragment(self.state),
            "joined_at": joined_at.isoformat(timespec="milliseconds"),
        }


#: The connections of a member that clients see. Empty: it is no member.
Metas = tuple[Meta, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """A change of a channel in the database: from one version to the next. 0: the channel has no members."""

    previous: int
    version: int


@dataclass(frozen=True, slots=True)
class Change:
    """A change by a ``process`` in one channel."""

    process: str
    link: Link
    put: Sequence[Meta] = ()
    gone: Sequence[str] = ()
    #: Processes that were found dead: all their members have left.
    dead: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference that clients are told. ``members``: joined, updated and left ones as JSON, by key.

    None if there are too many.
    ``restarts``: the clients need the whole state, because they can be told the members again.
    """

    previous: int
    version: int
    count: int
    members: tuple[dict[str, orjson.Fragment], dict[str, orjson.Fragment], dict[str, orjson.Fragment]] | None
    restarts: bool = False

    def to_wire(self) -> dict[str, Any]:
        """Return the fields of the event ``presence``, without ``channel``."""
        body: dict[str, Any] = {"version": self.version, "previous": self.previous, "count": self.count}
        if self.members is not None:
            for name, members in zip(("joined", "updated", "left"), self.members, strict=True):
                body[name] = list(members.values())
        return body


def _member_to_wire(key: str, metas: Metas) -> orjson.Fragment:
    """Return a member as clients get it, as JSON."""
    wire = {"key": key, "anonymous": True} if key.startswith(ANONYMOUS) else {"key": key}
    return orjson.Fragment(orjson.dumps(wire | {"metas": [meta.to_wire() for meta in metas]}))


class Roster:
    """The members of a channel. Up to ``most`` of them are listed; of more, clients are told the count."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._metas: dict[str, Meta] = {}
        self._members: dict[str, dict[str, Meta]] = {}
        #: Changed keys: what all clients know of them, and what those have been shown that came since.
        self._before: dict[str, Metas] = {}
        self._shown: dict[str, list[Metas]] = {}
        #: The numbers of members that such clients have been shown without the members.
        self._counts: set[int] = set()
        #: Whether some of them do not have the members that the others have.
        self._bare = False
        #: The members as JSON: each, and all.
        self._wires: dict[str, orjson.Fragment] = {}
        self._listed: orjson.Fragment | None = None
        #: The version that clients were told last, and whether they were told the count only.
        self.version = 1
        self.many = False
        #: The version in the database up to which all changes are known; None until it was read.
        self.known: int | None = None
        self._early: list[Change] = []
        #: Later changes than the next one, by the version before them.
        self._ahead: dict[int, Change] = {}
        #: Those that the database had before it was read.
        self._covered: dict[int, Change] = {}

    # -- members -------------------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """The number of members."""
        return len(self._members)

    @property
    def changed(self) -> bool:
        """Whether :meth:`difference` may have something to tell."""
        return bool(self._before)

    def get(self, ref: str) -> Meta | None:
        return self._metas.get(ref)

    def put(self, meta: Meta) -> None:
        """Add a connection, or replace the one with the same ref."""
        old = self._metas.get(meta.ref)
        if old is not None and old.key != meta.key:
            self.remove(meta.ref)
        if old != meta:
            self._touch(meta.key)
        self._metas[meta.ref] = meta
        self._members.setdefault(meta.key, {})[meta.ref] = meta

    def remove(self, ref: str) -> None:
        """Remove a connection, if it is there."""
        meta = self._metas.pop(ref, None)
        if meta is not None:
            self._touch(meta.key)
            metas = self._members[meta.key]
            del metas[ref]
            if not metas:
                del self._members[meta.key]

    def visible(self, key: str) -> Metas:
        """Return the connections of a member that clients see."""
        metas = self._members.get(key, {}).values()
        return tuple(sorted(metas, key=lambda meta: (meta.joined_at, meta.ref))[:MAX_METAS])

    def members(self) -> orjson.Fragment:
        """Return all members as JSON."""
        if self._listed is None:
            self._listed = orjson.Fragment(orjson.dumps([self._wire(key) for key in self._members]))
        return self._listed

    def _wire(self, key: str) -> orjson.Fragment:
        wire = self._wires.get(key)
        if wire is None:
            wire = self._wires[key] = _member_to_wire(key, self.visible(key))
        return wire

    def _touch(self, key: str) -> None:
        self._listed = None
        self._wires.pop(key, None)
        if key not in self._before:
            self._before[key] = self.visible(key)

    # -- clients -------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Forget what clients were told: there are none."""
        self._before.clear()
        self._shown.clear()
        self._counts.clear()
        self._bare = False
        self.many = self.count > self._most

    def show(self) -> dict[str, Any]:
        """Return the state for a client that gets the differences after its ``version``. It may be ahead of that."""
        body: dict[str, Any] = {"version": self.version, "count": self.count}
        if self.many or self.count > self._most:
            self._counts.add(self.count)
            self._bare = not self.many
        else:
            body["members"] = self.members()
            for key in self._before:
                shown, now = self._shown.setdefault(key, []), self.visible(key)
                if not shown or shown[-1] != now:
                    shown.append(now)
        return body

    def difference(self) -> Difference | None:
        """Return what has changed for the clients since the last time, None if nothing has."""
        before, shown, counts, bare = self._before, self._shown, self._counts, self._bare
        self._before, self._shown, self._counts, self._bare = {}, {}, set(), False
        joined: list[str] = []
        updated: list[str] = []
        left: dict[str, Metas] = {}
        for key, old in before.items():
            now, known = self.visible(key), [old, *shown.get(key, ())]
            if all(one == now for one in known):
                continue
            if not now:
                left[key] = next(filter(None, reversed(known)))
            elif old:
                updated.append(key)
            else:
                joined.append(key)
        were_many = self.many
        # Not to and fro with each member that comes and goes.
        self.many = self.count > (self._most * 9 // 10 if were_many else self._most)
        members_changed = joined or left or (updated and not self.many)
        if not (members_changed or self.many != were_many or bare or counts - {self.count}):
            return None
        previous, self.version = self.version, self.version + 1
        members = None
        if not self.many:
            gone = {key: _member_to_wire(key, metas) for key, metas in left.items()}
            members = {key: self._wire(key) for key in joined}, {key: self._wire(key) for key in updated}, gone
        return Difference(previous, self.version, self.count, members, (were_many or bare) and not self.many)

    # -- the database, and other processes -----------------------------------------------------------------------------

    @property
    def incomplete(self) -> bool:
        """Whether a change is missing between those that are known."""
        return bool(self._ahead)

    def begin_read(self) -> None:
        """Note that the database is about to be read. It has all changes that were heard before."""
        self._early, self._covered = [], dict(self._ahead)

    def load(self, version: int, metas: Iterable[Meta], own: str, *, keep: bool = False) -> None:
        """Replace the members of other processes than ``own`` by those in the database, at its ``version``.

        It follows :meth:`begin_read`.
        ``keep``: also keep those that are not there: the database may have lost them.
        """
        there = set()
        for meta in metas:
            there.add(meta.ref)
            self.put(meta)
        if not keep:
            for ref, meta in list(self._metas.items()):
                if meta.process != own and ref not in there:
                    self.remove(ref)
        self.known = version
        later = [one for previous, one in self._ahead.items() if self._covered.get(previous) is not one] + self._early
        self._ahead, self._covered, self._early = {}, {}, []
        for change in later:
            self.apply(change)

    def apply(self, change: Change) -> None:
        """Apply a change, in the order of versions: a later one waits for those before it.

        Only the version of one of this process, whose members are there already.
        """
        if self.known is None:
            self._early.append(change)
        elif not self._is_known(change.link):
            self._ahead[change.link.previous] = change
            while self.known in self._ahead:
                self._apply(self._ahead.pop(self.known))

    def drop(self, process: str) -> None:
        """Remove the members of a process."""
        for ref, meta in list(self._metas.items()):
            if meta.process == process:
                self.remove(ref)

    def _is_known(self, link: Link) -> bool:
        known = self.known or 0
        return link.version <= known if link.version else link.previous < known

    def _apply(self, change: Change) -> None:
        for meta in change.put:
            self.put(meta)
        for ref in change.gone:
            found = self._metas.get(ref)
            # Another process may have taken the connection over.
            if found is not None and found.process == change.process:
                self.remove(ref)
        for process in change.dead:
            self.drop(process)
        self.known = change.link.version


def to_change(process: str, body: Mapping[str, Any]) -> Change:
    """Return the change of one channel in a message of ``process``, as of :func:`to_body`."""
    put = [
        Meta(ref, key, client, state, joined_at, process) for ref, key, client, state, joined_at in body.get("put", ())
    ]
    return Change(process, Link(*body["link"]), put, body.get("gone", ()), body.get("dead", ()))


def to_body(change: Change) -> dict[str, Any]:
    """Return a change as JSON."""
    body: dict[str, Any] = {"link": [change.link.previous, change.link.version]}
    if change.put:
        body["put"] = [[one.ref, one.key, one.client, one.state, one.joined_at] for one in change.put]
    if change.gone:
        body["gone"] = list(change.gone)
    if change.dead:
        body["dead"] = list(change.dead)
    return body
