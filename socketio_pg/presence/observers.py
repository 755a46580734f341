"""Tells programs of this process that channels are occupied or vacated, and that members have joined or left."""

import logging
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from socketio_pg.core import green
from socketio_pg.presence.table import Written

logger = logging.getLogger("socketio_pg.presence")

#: What happens to a channel: it gets its first member, a member joins, one leaves, the last one has left.
Event: TypeAlias = Literal["occupied", "joined", "left", "vacated"]
#: Gets the event, the channel, and the key of the member; None if the event is about the channel.
Observer: TypeAlias = Callable[[Event, str, str | None], object]


class Observers:
    """The observers of one process. ``always``: the events of members are wanted in any case."""

    def __init__(self, always: bool) -> None:
        self._always = always
        self._observers: list[Observer] = []
        self._members_wanted: list[Callable[[], bool]] = []

    def add(self, observer: Observer, members: Callable[[], bool]) -> None:
        """Add an observer, which gets the events of members while ``members()`` is true."""
        self._observers.append(observer)
        self._members_wanted.append(members)

    def want_members(self) -> bool:
        """Return whether the events of members are wanted."""
        return self._always or any(wanted() for wanted in self._members_wanted)

    def tell_soon(self, written: Sequence[Written]) -> None:
        """Tell the observers what this process has written, in a green thread of its own."""
        if self._observers and any(bool(one.before) != bool(one.after) or one.joined or one.left for one in written):
            green.run_soon(self._tell, written)

    def _tell(self, written: Sequence[Written]) -> None:
        events: list[tuple[Event, str, str | None]] = []
        for one in written:
            if one.after and not one.before:
                events.append(("occupied", one.channel, None))
            events += [("joined", one.channel, key) for key in one.joined]
            events += [("left", one.channel, key) for key in one.left]
            if one.before and not one.after:
                events.append(("vacated", one.channel, None))
        for event in events:
            for observer in self._observers:
                try:
                    observer(*event)
                except Exception:  # the application's
                    logger.exception("an observer of presence failed")
