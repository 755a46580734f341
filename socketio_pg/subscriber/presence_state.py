"""The members of a channel's presence, kept in step with what the server sends. Pure, no I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

#: Differences that wait for the state. Without an older one the state is requested once more.
_MAX_EARLY = 1000


class Meta(TypedDict):
    """One connection of a member: ``client`` is its Socket.IO id, ``state`` what the client says about itself."""

    ref: str
    client: str
    state: Any
    joined_at: str


class _Member(TypedDict):
    key: str
    metas: list[Meta]


class PresenceMember(_Member, total=False):
    """A person: the connections (``metas``, the oldest first) with one key, which is the `sub` of their tokens.

    ``anonymous``: the client has no token, and has chosen the key itself.
    """

    anonymous: bool


@dataclass(frozen=True, slots=True)
class PresenceChange:
    """A member has joined, has changed, or has left. ``before`` is the former member, None after a join.

    ``update``: the state of a connection has changed, or another connection of the same member has come or gone.
    """

    kind: Literal["join", "update", "leave"]
    member: PresenceMember
    before: PresenceMember | None = None


class PresenceState:
    """The members by key. Each change replaces a member, and never modifies it.

    Changes are reported between two known lists only: not the members who are there at the beginning.
    """

    def __init__(self) -> None:
        self.members: dict[str, PresenceMember] = {}
        #: How many members there are. More than ``members`` has when the server sends only the count.
        self.count = 0
        #: Whether ``members`` has all of them.
        self.complete = False
        #: The version on this connection; None if the state must be requested.
        self._version: int | None = None
        #: The differences that have arrived since.
        self._early: list[Mapping[str, Any]] = []

    @property
    def current(self) -> bool:
        """Whether the next difference can be applied. If not, the state must be requested."""
        return self._version is not None

    def lose(self) -> None:
        """Handle the loss of the connection: the next state is compared with the members of now."""
        self._version = None
        self._early.clear()

    def sync(self, state: Mapping[str, Any]) -> list[PresenceChange]:
        """Take the state that the server has sent; return what has changed."""
        early, self._early = self._early, []
        self._version = state["version"]
        changes = self._replace(state.get("members"), state["count"])
        for difference in early:
            if self._version is None or difference["version"] > self._version:
                changes += self.apply(difference)
        return changes

    def apply(self, difference: Mapping[str, Any]) -> list[PresenceChange]:
        """Take a difference; return what has changed.

        Afterwards :attr:`current` is false if an earlier difference is missing.
        """
        if difference["previous"] != self._version:
            self._version = None
            self._early = [*self._early[1 - _MAX_EARLY :], difference]
            return []
        self._version = difference["version"]
        if "joined" not in difference or not self.complete:
            return self._replace(None, difference["count"])  # too many members: no lists
        self.count = difference["count"]
        changes = [self._set(member) for member in (*difference["joined"], *difference["updated"])]
        changes += [self._remove(member["key"]) for member in difference["left"]]
        return [change for change in changes if change is not None]

    def _replace(self, members: Sequence[PresenceMember] | None, count: int) -> list[PresenceChange]:
        """Take all members; None: they are not known any more."""
        changes: list[PresenceChange | None] = []
        self.count = count
        if members is not None and self.complete:
            gone = self.members.keys() - {member["key"] for member in members}
            changes = [self._set(member) for member in members] + [
                self._remove(key) for key in list(self.members) if key in gone
            ]
        self.complete = members is not None
        self.members.clear()
        self.members.update((member["key"], member) for member in members or ())
        return [change for change in changes if change is not None]

    def _set(self, member: PresenceMember) -> PresenceChange | None:
        before = self.members.get(member["key"])
        self.members[member["key"]] = member
        if before is None:
            return PresenceChange("join", member)
        return None if _states(before) == _states(member) else PresenceChange("update", member, before)

    def _remove(self, key: str) -> PresenceChange | None:
        before = self.members.pop(key, None)
        return None if before is None else PresenceChange("leave", before, before)


def _states(member: PresenceMember) -> dict[str, Any]:
    """Return the states by ref. The Socket.IO id of a connection that has returned is no change."""
    return {meta["ref"]: meta["state"] for meta in member["metas"]}
