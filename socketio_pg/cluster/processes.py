"""The processes of all nodes, as one of them hears of them: who is there, and whose messages were missed. Pure, no I/O.

Each text of a process describes it and has the number of its last message. One worker of each node sends a beat every
few seconds with all processes of the node. Silence is measured in the beats of the own node that have come back over
the same way: a process that cannot hear, or whose database is down, declares no other one dead.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

#: The id of a process, unique for ever.
ProcessId: TypeAlias = str

#: The maximum number of processes that are remembered.
MAX_PROCESSES = 10_000


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the cluster: a node, or a worker of a node with several.

    ``node`` is the id of its node and ``name`` its name, as in the view ``socketio_pg.nodes``. ``worker`` is its slot;
    None when it is the only one. ``since``: when it started, in seconds since 1970.
    """

    id: ProcessId
    node: str
    name: str
    worker: int | None
    since: float

    def to_wire(self) -> list[Any]:
        """Return it as JSON."""
        return [self.id, self.node, self.name, self.worker, round(self.since, 3)]

    @classmethod
    def from_wire(cls, found: Any) -> "Process":
        """Return the process that :meth:`to_wire` has written. Raises ValueError."""
        match found:
            case [str(id), str(node), str(name), int() | None as worker, int() | float() as since] if id and node:
                return cls(id, node, name, worker, float(since))
        raise ValueError("not a process")


@dataclass(slots=True)
class _Heard:
    """Another process, as this one knows it."""

    process: Process
    #: The beats of the own node until it was last heard.
    ticks: int
    #: The number of its last message; None if none was heard.
    number: int | None = None
    #: A beat of its node has named it.
    listed: bool = False
    #: The end of one of its texts was noted.
    followed: bool = False


class Processes:
    """The other processes.

    ``on_joined`` and ``on_left`` are called with a process when it is heard for the first time, and when it has left or
    was not heard while :attr:`patience` beats of the own node were.
    """

    #: Beats of the own node without a word of another process, until it is taken for dead.
    patience = 4

    def __init__(self, on_joined: Callable[[Process], None], on_left: Callable[[Process], None]) -> None:
        self._on_joined = on_joined
        self._on_left = on_left
        self._heard: dict[ProcessId, _Heard] = {}
        self._ticks = 0
        #: Node → the time of its newest beat (its own monotonic clock, which its workers share).
        self._beats: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._heard)

    def all(self) -> list[Process]:
        """Return the other processes."""
        return [heard.process for heard in self._heard.values()]

    def has(self, id: ProcessId) -> bool:
        """Return whether a process is there."""
        return id in self._heard

    def of(self, node: str) -> list[Process]:
        """Return the other processes of a node."""
        return [process for process in self.all() if process.node == node]

    def has_others(self, node: str) -> bool:
        """Return whether there is a process of another node than this one."""
        return any(heard.process.node != node for heard in self._heard.values())

    # -- what was heard ------------------------------------------------------------------------------------------------

    def hear(self, process: Process, at: float, *, leaves: bool = False) -> bool:
        """Note a text that a process has sent ``at`` (its monotonic clock); ``leaves``: it is the last one.

        Return whether the process is there.
        """
        heard = self._heard.get(process.id)
        if heard is None:
            if leaves or at <= self._beats.get(process.node, -math.inf):
                return False  # from before a beat that did not name it
            self._join(process)
        else:
            heard.ticks = self._ticks
        return True

    def meet(self, process: Process) -> None:
        """Note that another worker of the own node is there."""
        if process.id not in self._heard:
            self._join(process)

    def leave(self, processes: Collection[Process]) -> None:
        """Note that these have ended."""
        for process in processes:
            if self._heard.pop(process.id, None) is not None:
                self._on_left(process)

    def beat(self, sender: Process, at: float, named: Sequence[Process]) -> None:
        """Note a beat of another node: these are all of its processes. One that leaves does not name itself."""
        node = sender.node
        if at <= self._beats.get(node, -math.inf):
            return  # an older one that was delivered late
        self._beats.pop(node, None)
        self._beats[node] = at
        while len(self._beats) > MAX_PROCESSES:
            del self._beats[next(iter(self._beats))]
        names = {process.id for process in named}
        # One that no beat has named yet may have started after this one was made.
        self.leave([one.process for one in self._of(node) if one.listed and one.process.id not in names])
        if sender.id not in names:
            self.leave([sender])
        for process in named:
            heard = self._heard.get(process.id) or self._join(process)
            if heard is not None:
                heard.ticks, heard.listed = self._ticks, True

    def count(self, id: ProcessId, number: int) -> tuple[bool, bool]:
        """Note the number of a message that was received. Return whether it is new, and whether none is missing."""
        heard = self._heard.get(id)
        if heard is None:
            return True, True
        last, heard.number = heard.number, max(number, heard.number or 0)
        return last is None or number > last, last is None or number <= last + 1

    def reached(self, id: ProcessId, number: int, skipped: bool) -> bool:
        """Note the number of a process's last message, at the end of a text. Return whether none is missing.

        ``skipped``: it has not sent some of its messages a short while ago.
        """
        heard = self._heard.get(id)
        if heard is None:
            return True
        last, heard.number = heard.number, max(number, heard.number or 0)
        first, heard.followed = not heard.followed, True
        return (last is None or number <= last) and not (first and skipped)

    # -- silence -------------------------------------------------------------------------------------------------------

    def tick(self, own_node: str) -> None:
        """Note that a regular beat of the own node has come back. Processes of other nodes that are silent leave."""
        self._ticks += 1
        silent = [one for one in self._heard.values() if self._ticks - one.ticks >= self.patience]
        self.leave([one.process for one in silent if one.process.node != own_node])

    def excuse(self) -> None:
        """Begin to wait anew for all processes: this one may have missed their beats."""
        for heard in self._heard.values():
            heard.ticks = self._ticks

    def _of(self, node: str) -> list[_Heard]:
        return [heard for heard in self._heard.values() if heard.process.node == node]

    def _join(self, process: Process) -> _Heard | None:
        if len(self._heard) >= MAX_PROCESSES:
            return None
        heard = self._heard[process.id] = _Heard(process, self._ticks)
        self._on_joined(process)
        return heard


class Answers(dict[ProcessId, Any]):
    """The answers to a question, by process; ``silent`` has the processes that were asked and did not answer."""

    def __init__(self, answers: Mapping[ProcessId, Any], silent: Sequence[Process]) -> None:
        super().__init__(answers)
        self.silent = list(silent)
