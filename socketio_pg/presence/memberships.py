"""The memberships of this process's clients, also of those whose connection is lost and who may return. No I/O."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from socketio_pg.presence.roster import Meta

Key = TypeVar("Key")


@dataclass(eq=False, slots=True)
class Membership:
    """A client's membership in a channel. ``state`` is JSON text, ``joined_at`` milliseconds since 1970.

    ``lost_at``: when its connection was lost (monotonic); None while it is there.
    """

    channel: str
    key: str
    ref: str
    client: str
    state: str
    joined_at: int
    lost_at: float | None = None

    def to_meta(self, process: str) -> Meta:
        return Meta(self.ref, self.key, self.client, self.state, self.joined_at, process)


class Memberships:
    """All memberships of one process."""

    def __init__(self) -> None:
        self._of_client: dict[str, dict[str, Membership]] = {}
        self._of_channel: dict[str, dict[str, Membership]] = {}
        self._count = 0
        #: Those without a connection, the first lost first; and by channel and key.
        self._lost: dict[str, Membership] = {}
        self._lost_of: dict[tuple[str, str], dict[str, Membership]] = {}

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Membership]:
        for members in list(self._of_channel.values()):
            yield from list(members.values())

    @property
    def any_lost(self) -> bool:
        return bool(self._lost)

    def get(self, client: str, channel: str) -> Membership | None:
        return self._of_client.get(client, {}).get(channel)

    def of_client(self, client: str) -> list[Membership]:
        return list(self._of_client.get(client, {}).values())

    def of_channel(self, channel: str) -> list[Membership]:
        return list(self._of_channel.get(channel, {}).values())

    def has_channel(self, channel: str) -> bool:
        return channel in self._of_channel

    def find(self, channel: str, ref: str) -> Membership | None:
        return self._of_channel.get(channel, {}).get(ref)

    def add(self, membership: Membership) -> None:
        """Add a membership that its client does not have yet in this channel."""
        self._of_client.setdefault(membership.client, {})[membership.channel] = membership
        self._of_channel.setdefault(membership.channel, {})[membership.ref] = membership
        self._count += 1

    def remove(self, membership: Membership) -> None:
        """Remove one of these memberships."""
        self.found(membership)
        _take(self._of_client, membership.client, membership.channel)
        _take(self._of_channel, membership.channel, membership.ref)
        self._count -= 1

    def lose(self, membership: Membership, now: float) -> None:
        """Note that its connection is lost."""
        if membership.lost_at is None:
            membership.lost_at = now
            self._lost[membership.ref] = membership
            self._lost_of.setdefault((membership.channel, membership.key), {})[membership.ref] = membership

    def found(self, membership: Membership) -> None:
        """Note that its client has returned."""
        if membership.lost_at is not None:
            membership.lost_at = None
            del self._lost[membership.ref]
            _take(self._lost_of, (membership.channel, membership.key), membership.ref)

    def lost_of(self, channel: str, key: str) -> Membership | None:
        """Return the membership of a person whose connection was lost first, if any was lost."""
        return next(iter(self._lost_of.get((channel, key), {}).values()), None)

    def lost_until(self, latest: float) -> list[Membership]:
        """Return those whose connections were lost at that time (monotonic) or earlier."""
        found = []
        for membership in self._lost.values():
            if membership.lost_at is None or membership.lost_at > latest:
                break
            found.append(membership)
        return found


def _take(index: dict[Key, dict[str, Membership]], key: Key, name: str) -> None:
    """Remove an entry of one of the indexes, and the dictionary that had it if that is empty then."""
    del index[key][name]
    if not index[key]:
        del index[key]
