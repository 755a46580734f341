"""Streams by what they get: all streams of a group get the same bytes, in one send for each batch of messages."""

import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from socketio_pg.core import green
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.core.metrics import fan_out
from socketio_pg.engine.stream import StreamConnection
from socketio_pg.log.replay import HeldReplay
from socketio_pg.pubsub.filters import Filter
from socketio_pg.pubsub.matching import Matching
from socketio_pg.streams.events import html_block, message_block

#: The form of messages: JSON, JSON with numbers as strings, or the HTML that their publishers have chosen.
Form: TypeAlias = Literal["json", "strings", "html"]


@dataclass(frozen=True, slots=True)
class Contents:
    """The contents of a stream: its channels, in order and without repetition, their filter and form."""

    channels: tuple[str, ...]
    filter: Filter | None = None
    form: Form = "json"


@dataclass(eq=False, slots=True)
class Stream:
    """One open stream. ``contents.channels`` are its subscriptions; the hub knows it as ``sid``."""

    sid: str
    contents: Contents
    connection: StreamConnection
    #: Called once, when the stream has ended.
    leave: Callable[[], None]
    #: The address of its client.
    address: str = ""
    #: Whether the event `live` is due when its replay has caught up.
    awaits_live: bool = False
    #: The replay that is being sent.
    replay: HeldReplay | None = None

    @property
    def buffered(self) -> int:
        """The number of bytes that wait for the client to read."""
        return self.connection.buffered

    def stuck_seconds(self, now: float) -> float:
        """Return for how long the client has read nothing although something waits for it."""
        return self.connection.stuck_seconds(now)


@dataclass(eq=False, slots=True)
class Group:
    """The streams with the same contents, by sid."""

    contents: Contents
    members: dict[str, Stream] = field(default_factory=dict)
    #: The ``send`` of each member, in the order of the members; None when they have changed.
    sends: list[Callable[[bytes], None]] | None = None

    def all_sends(self) -> list[Callable[[bytes], None]]:
        if self.sends is None:
            self.sends = [one.connection.send for one in self.members.values()]
        return self.sends


class Groups:
    """The groups of one process. A group sends each batch of messages in one piece to each of its streams."""

    #: Seconds of sending before other green threads run, and sends between two readings of the clock.
    slice_seconds = 0.002
    slice_sends = 50

    def __init__(self, matching: Matching) -> None:
        self._matching = matching
        self._groups: dict[Contents, Group] = {}
        self._of_channel: dict[str, list[Group]] = {}

    def __bool__(self) -> bool:
        return bool(self._groups)

    def add(self, stream: Stream) -> None:
        """Add a stream. It gets nothing of a broadcast that is under way."""
        group = self._groups.get(stream.contents)
        if group is None:
            group = self._groups[stream.contents] = Group(stream.contents)
            for channel in stream.contents.channels:
                self._of_channel.setdefault(channel, []).append(group)
        group.members[stream.sid] = stream
        group.sends = None

    def discard(self, stream: Stream) -> None:
        """Remove a stream; twice is harmless."""
        group = self._groups.get(stream.contents)
        if group is None or group.members.pop(stream.sid, None) is None:
            return
        group.sends = None
        if group.members:
            return
        del self._groups[stream.contents]
        for channel in stream.contents.channels:
            self._of_channel[channel].remove(group)
            if not self._of_channel[channel]:
                del self._of_channel[channel]

    def of(self, channel: str) -> Iterator[Stream]:
        """Yield the streams that have subscribed to ``channel``."""
        for group in self._of_channel.get(channel, ()):
            yield from group.members.values()

    def choose(self, messages: Sequence[EncodedMessage], epoch: str | None) -> dict[Group, list[bytes]]:
        """Return the blocks of ``messages``, in order, for each group that gets any. Does not yield."""
        blocks: dict[Group, list[bytes]] = {}
        for message in messages:
            groups = self._of_channel.get(message.channel)
            if groups is None:
                continue
            filters: Collection[Filter] | None = None
            encoded: dict[Form, bytes | None] = {}
            for group in groups:
                if group.contents.filter is not None:
                    filters = set(self._matching.matching(message)) if filters is None else filters
                    if group.contents.filter not in filters:
                        continue
                form = group.contents.form
                if form not in encoded:
                    encoded[form] = encode(message, form, epoch, self._matching.strings)
                block = encoded[form]
                if block is not None:
                    blocks.setdefault(group, []).append(block)
        return blocks

    def send(self, blocks: Mapping[Group, Sequence[bytes]], skipped: Collection[Hashable] = ()) -> None:
        """Send to each group its blocks, apart from the streams ``skipped``. Yields in between."""
        # Chosen before anything yields: streams that begin during the broadcast get nothing of it.
        chosen = [
            (b"".join(some), len(some), _without(group, skipped) if skipped else group.all_sends())
            for group, some in blocks.items()
        ]
        self.send_chosen(chosen)

    def send_chosen(self, chosen: Iterable[tuple[bytes, int, Sequence[Callable[[bytes], None]]]]) -> None:
        """Send bytes, which have so many events, to each of several receivers. Yields in between."""
        turn_ends = time.monotonic() + self.slice_seconds
        for data, events, sends in chosen:
            for start in range(0, len(sends), self.slice_sends):
                for send in sends[start : start + self.slice_sends]:
                    send(data)
                if time.monotonic() > turn_ends:
                    green.sleep()
                    turn_ends = time.monotonic() + self.slice_seconds
            fan_out.streamed += events * len(sends)
            fan_out.streamed_bytes += len(data) * len(sends)


def _without(group: Group, skipped: Collection[Hashable]) -> list[Callable[[bytes], None]]:
    return [one.connection.send for sid, one in group.members.items() if sid not in skipped]


def encode(
    message: EncodedMessage,
    form: Form,
    epoch: str | None,
    strings: Callable[[EncodedMessage], str],
    place: str | None = None,
) -> bytes | None:
    """Return the block of a message in a form; None when it has none. Only messages of the log have an id.

    ``place``: the id, if it is not the position.

    HTML comes through the log only: any role of the database may send a NOTIFY, and pages run what is in their HTML.
    """
    cursor = "" if message.position is None or epoch is None else place or f"{epoch}:{message.position}"
    if form == "html":
        return html_block(message, cursor) if cursor else None
    return message_block(message, cursor, strings(message) if form == "strings" else None)
