"""Questions about permission, and who is asked about next: in turn, and the slow ones apart. No I/O."""

import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from socketio_pg.core import green

Action: TypeAlias = Literal["subscribe", "publish"]


@dataclass(frozen=True, slots=True)
class Question:
    """May whoever has ``claims`` (JSON text), as ``role`` of PostgreSQL, do this in ``channel``?"""

    action: Action
    role: str
    claims: str
    channel: str


@dataclass(eq=False, slots=True)
class Asked:
    question: Question
    done: green.Event = field(default_factory=green.Event)
    #: Nobody waits for the answer any more.
    abandoned: bool = False


class Lane:
    """Questions that wait, and how many are asked together by how many green threads at once.

    Whose are many waits for others: from each (by claims) one is taken in turn.
    """

    def __init__(self, workers: int, batch_size: int) -> None:
        self.workers = [green.Worker() for _ in range(workers)]
        self.batch_size = batch_size
        self.size = 0
        self._waiting: OrderedDict[str, deque[Asked]] = OrderedDict()

    @property
    def busy(self) -> int:
        """The number of green threads that work."""
        return sum(worker.running for worker in self.workers)

    def put(self, asked: Asked, *, first: bool = False) -> None:
        """Let it wait; ``first``: it has waited before."""
        self.size += 1
        of_client = self._waiting.setdefault(asked.question.claims, deque())
        if first:
            of_client.appendleft(asked)
            self._waiting.move_to_end(asked.question.claims, last=False)
        else:
            of_client.append(asked)

    def next_batch(self) -> list[Asked]:
        batch: list[Asked] = []
        while self._waiting and len(batch) < self.batch_size:
            claims, of_client = next(iter(self._waiting.items()))
            asked = of_client.popleft()
            self.size -= 1
            self._waiting.move_to_end(claims)
            if not of_client:
                del self._waiting[claims]
            if not asked.abandoned:
                batch.append(asked)
        return batch

    def clear(self) -> list[Asked]:
        """Take out all that wait."""
        found = [asked for of_client in self._waiting.values() for asked in of_client]
        self._waiting.clear()
        self.size = 0
        return found


class Slow:
    """Which channels, and which clients, have turned out slow of late."""

    #: Seconds for which that counts; how many are known; times after which it is the client that is slow.
    seconds = 60.0
    most = 10_000
    times = 3

    def __init__(self) -> None:
        self._channels: OrderedDict[str, float] = OrderedDict()
        self._clients: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def add(self, question: Question) -> bool:
        """The question took too long. Whether that is news of its channel."""
        until = time.monotonic() + self.seconds
        news = not self._is_known(self._channels.get(question.channel, 0.0))
        self._channels[question.channel] = until
        self._channels.move_to_end(question.channel)
        if news:
            # One who goes on finding new ones is the one that others are to be kept from.
            before, times = self._clients.get(question.claims, (0.0, 0))
            self._clients[question.claims] = (until, times + 1 if self._is_known(before) else 1)
            self._clients.move_to_end(question.claims)
        for known in (self._channels, self._clients):
            while len(known) > self.most:
                known.popitem(last=False)
        return news

    def __contains__(self, question: Question) -> bool:
        until, times = self._clients.get(question.claims, (0.0, 0))
        return self._is_known(self._channels.get(question.channel, 0.0)) or (
            times >= self.times and self._is_known(until)
        )

    @staticmethod
    def _is_known(until: float) -> bool:
        return time.monotonic() < until
