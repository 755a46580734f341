"""Asks all processes of the cluster for what the inspector shows, over `cluster/bus`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from socketio_pg.cluster.bus import Bus
from socketio_pg.cluster.processes import Process


@dataclass(frozen=True, slots=True)
class Found:
    """The answers, each with its process: first that of this one. ``unanswered`` names those that did not answer."""

    answers: Sequence[tuple[Process, Any]]
    unanswered: Sequence[dict[str, Any]]

    def to_wire(self) -> dict[str, Any]:
        """Return ``processes``, the number of answers, and ``unanswered``, for the end of a list."""
        return {"processes": len(self.answers), "unanswered": list(self.unanswered)}


class Everywhere:
    """Questions to all processes. Make the parts that answer before the bus starts."""

    #: Seconds for the other processes to answer.
    seconds = 2.0

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._functions: dict[str, Callable[[Any], Any]] = {}

    @property
    def own(self) -> Process:
        """This process. Only after the bus has started."""
        return self._bus.own

    def answer(self, kind: str, function: Callable[[Any], Any]) -> None:
        """Answer questions of this kind with ``function(body)``, a JSON value. It may wait."""
        self._functions[kind] = function
        self._bus.answer(f"inspector_{kind}", lambda sender, body: function(body))

    def ask(self, kind: str, body: Any = None, seconds: float | None = None) -> Found:
        """Ask all processes, also this one. Waits for ``seconds``. Raises what the own function raises."""
        own = self._functions[kind](body)
        answers = self._bus.ask(f"inspector_{kind}", body, self.seconds if seconds is None else seconds)
        known = {process.id: process for process in self._bus.processes}
        found = [(known[id], answer) for id, answer in answers.items() if id in known]
        unanswered = [{"node": process.name, "worker": process.worker} for process in answers.silent]
        return Found([(self._bus.own, own), *found], unanswered)
