"""The checker's subscribers that recover their sessions, as the stock JavaScript client does: docs/recovery.md."""

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tests.support.checker import Forgotten, Recovered
from tests.support.checker_clients import Loop
from tests.support.checker_subscribers import Subscriber

#: Outcomes that any run may have. With `unknown_session`, PostgreSQL must have crashed: it then loses the sessions of
#: nodes that do not answer.
EXCUSES = {"recovered", "first", "replaying", "busy", "database_unavailable"}


class RecoveringSubscriber(Subscriber):
    """Subscribes again only to channels that its session does not have, or may not have.

    It sends the ``pid`` and ``offset`` of a stock client: the offset is the last argument of the last event that it has
    handled, also after it has got a new pid. Events that come before the answer to CONNECT are handled after it, or
    after that of a later connection.
    """

    def __init__(
        self,
        loop: Loop,
        name: str,
        ports: Sequence[int],
        channels: Sequence[str],
        random: Random,
        epoch: str,
        restless: float,
    ) -> None:
        super().__init__(loop, name, ports, channels, random, epoch, restless)
        self._pid: str | None = None
        self._offset: str | None = None
        self._early: list[tuple[Any, ...]] = []
        #: The channels of the session when the connection was lost, and those whose last request was not answered.
        self._kept: set[str] = set()
        self._unsure: set[str] = set()
        self._recovered = False
        #: How often the session was recovered, and how often it was not, by reason.
        self.outcomes: Counter[str] = Counter()

    def _auth(self) -> dict[str, Any]:
        if self._pid is None:
            return {"recovery": True}
        return {"recovery": True, "pid": self._pid} | ({} if self._offset is None else {"offset": self._offset})

    def _on_connected(self, answer: dict[str, Any]) -> None:
        pid = answer.get("pid")
        self._recovered, self._pid = pid is not None and pid == self._pid, pid
        if self._recovered:
            self.notes.append(Recovered((*self._kept, *self._unsure)))
            self._subscribed |= self._kept
        elif self._random.random() < 0.3:
            # Like a client without positions.
            self.positions.clear()
            self.notes.append(Forgotten(tuple(self.channels)))
        early, self._early = self._early, []
        for arguments in early:
            self._on_event(*arguments)
        for channel in self.channels:
            if not self._recovered or channel not in self._kept:
                self._subscribe(channel)
        self._kept.clear()
        self._unsure.clear()

    def _on_event(self, event: str, argument: Any, *more: object) -> None:
        if not self._up:
            self._early.append((event, argument, *more))
            return
        if event == "server_hello":
            self._note_recovery(argument["recovery"])
        super()._on_event(event, argument)
        last = more[-1] if more else argument
        if self._pid is not None and isinstance(last, str):
            self._offset = last
        if self._pid is not None and not (isinstance(last, str) and last.startswith("r1:")):
            self._improper(f"got {event} without an offset: {last}")

    def _note_recovery(self, recovery: dict[str, Any]) -> None:
        if recovery["recovered"] != self._recovered:
            self._improper(f"was told {recovery}, but its pid says {self._recovered}")
        reason = "recovered" if self._recovered else recovery.get("reason", "first")
        self.outcomes[reason] += 1

    def _on_lost(self) -> None:
        unsure = {*self._asked, *self._leaving}
        self._kept |= self._subscribed
        self._kept -= unsure
        self._unsure |= unsure
        super()._on_lost()

    def _actions(self) -> list[Callable[[], None]]:
        return [
            *super()._actions(),
            lambda: self.leave(0.0, self._random.choice(self._ports)),
            lambda: self.desert(self._random.choice((0.0, 0.5)), self._random.choice(self._ports)),
            lambda: self.desert(0.0),
        ]
