"""The health of a node with several workers: the one that is asked, by /readyz, answers for all."""

import json
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from socketio_pg.core import green
from socketio_pg.core.problems import Problem
from socketio_pg.workers.loads import MAX_WORKERS
from socketio_pg.workers.node import Node
from socketio_pg.workers.peers import Peers

#: The part of :meth:`SocketServer.health` that a missing worker is a problem of.
PROCESS = "process"


@dataclass(frozen=True, slots=True)
class State:
    """The state of one worker; ``pid`` is None when it does not tell."""

    slot: int
    pid: int | None
    clients: int
    parts: Mapping[str, Problem | None]


class NodeHealth:
    """The health of the ``node`` of this worker.

    ``health()`` returns the problem of each part of this worker, None for a healthy one, and ``clients()`` the number
    of its clients. Make it before :meth:`Peers.start`.
    """

    #: Seconds for the other workers to answer.
    timeout = 2.0
    #: Seconds for which answers are used again: anyone may read /readyz, and each question costs time in all workers.
    fresh = 0.1
    #: Seconds between two questions for the view socketio_pg.nodes.
    interval = 2.0

    def __init__(
        self,
        node: Node,
        peers: Peers,
        health: Callable[[], Mapping[str, Problem | None]],
        clients: Callable[[], int],
    ) -> None:
        self._node = node
        self._peers = peers
        self._health = health
        self._clients = clients
        self._states: list[State] = []
        self._asked = float("-inf")
        #: Set while the workers are asked.
        self._asking: green.Event | None = None
        self._worker = green.Worker()
        peers.answer("health", lambda body: _encoded(self._own()))

    # -- for /readyz ---------------------------------------------------------------------------------------------------

    def parts(self) -> dict[str, Problem | None]:
        """Return the problem of each part of the node, None for a healthy one. Waits for the other workers.

        The node is healthy when as many workers answer as are wanted, and all of them are healthy. Workers that shut
        down do not matter when there are enough others.
        """
        states = self._recent()
        staying = [state for state in states if state.parts.get(PROCESS) is None]
        return merge(staying if len(staying) >= self._node.wanted else states)

    # -- for the view socketio_pg.nodes --------------------------------------------------------------------------------

    def start(self) -> None:
        """Start to ask all workers every few seconds. Call it in the worker whose relay describes the node."""
        self._worker.start(self._watch)

    def stop(self) -> None:
        """Stop asking."""
        self._worker.stop()

    @property
    def clients(self) -> int:
        """The clients of the node, some seconds ago."""
        return sum(state.clients for state in self._states or [self._own()])

    @property
    def workers(self) -> list[dict[str, Any]]:
        """The workers of the node, some seconds ago, for the column ``workers`` of socketio_pg.node."""
        return [
            {"slot": state.slot, "pid": state.pid, "clients": state.clients, "listens": state.slot == self._node.slot}
            | {"problem": next((f"{part}: {problem.public}" for part, problem in state.parts.items() if problem), None)}
            for state in self._states
        ]

    def _watch(self) -> None:
        while True:
            self._recent()
            green.sleep(self.interval)

    # -- asking --------------------------------------------------------------------------------------------------------

    def _recent(self) -> list[State]:
        while self._asking is not None:
            self._asking.wait()
        if time.monotonic() - self._asked > self.fresh:
            asking = self._asking = green.Event()
            try:
                self._states = self._ask()
                self._asked = time.monotonic()
            finally:
                self._asking = None
                asking.send()
        return self._states

    def _ask(self) -> list[State]:
        """Return the state of each worker, by slot, with those that are missing."""
        answers = self._peers.ask("health", b"", self.timeout)
        states = {slot: _decoded(slot, answer) for slot, answer in answers.items()} | {self._node.slot: self._own()}
        for slot in set(self._peers.slots) - states.keys():
            states[slot] = _missing(slot, "no answer")
        # A worker that starts takes the lowest free slot.
        free = (slot for slot in range(MAX_WORKERS) if slot not in states)
        for _ in range(self._node.wanted - len(states)):
            slot = next(free)
            states[slot] = _missing(slot, "not running")
        return [states[slot] for slot in sorted(states)]

    def _own(self) -> State:
        return State(self._node.slot, os.getpid(), self._clients(), self._health())


def merge(states: Collection[State]) -> dict[str, Problem | None]:
    """Return the problem of each part. It names the workers that have it, unless all have it."""
    parts = list(dict.fromkeys(part for state in states for part in state.parts))
    return {part: _merged({state.slot: state.parts[part] for state in states if part in state.parts}) for part in parts}


def _merged(problems: Mapping[int, Problem | None]) -> Problem | None:
    workers: dict[Problem, list[int]] = {}
    for slot, problem in problems.items():
        if problem is not None:
            # Compared by the text for the operator: the reference in the other one differs from worker to worker.
            workers.setdefault(problem, []).append(slot)
    if not workers:
        return None
    if len(workers) == 1 and None not in problems.values():
        return next(iter(workers))
    named = [(_named(slots), problem) for problem, slots in workers.items()]
    return Problem(
        "; ".join(f"{names}: {problem}" for names, problem in named),
        "; ".join(f"{names}: {problem.public}" for names, problem in named),
    )


def _named(slots: Collection[int]) -> str:
    return f"worker{'s' if len(slots) > 1 else ''} {', '.join(map(str, slots))}"


def _missing(slot: int, why: str) -> State:
    return State(slot, None, 0, {PROCESS: Problem(why)})


def _encoded(state: State) -> bytes:
    parts = {part: None if problem is None else (problem, problem.public) for part, problem in state.parts.items()}
    return json.dumps({"pid": state.pid, "clients": state.clients, "parts": parts}).encode()


def _decoded(slot: int, text: bytes) -> State:
    found = json.loads(text)
    parts = {part: None if problem is None else Problem(*problem) for part, problem in found["parts"].items()}
    return State(slot, found["pid"], found["clients"], parts)
