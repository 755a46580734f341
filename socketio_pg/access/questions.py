"""Permission questions and their queues: fair between clients, slow ones separate. No I/O."""

import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from socketio_pg.core import green

#: `presence`: see who is in a channel; `join`: be seen there; `ephemeral`: publish ephemeral messages; `pattern`:
#: subscribe to all channels that match a pattern.
Action: TypeAlias = Literal["subscribe", "publish", "presence", "join", "ephemeral", "pattern"]
#: The actions that INSERT policies decide, not SELECT policies.
INSERTING: frozenset[Action] = frozenset({"publish", "join", "ephemeral"})


@dataclass(frozen=True, slots=True)
class Question:
    """May a client with ``claims`` (JSON text) and PostgreSQL's ``role`` do ``action`` in ``channel``?"""

    action: Action
    role: str
    claims: str
    channel: str


@dataclass(eq=False, slots=True)
class Asked:
    """A question that waits for its answer."""

    question: Question
    done: green.Event = field(default_factory=green.Event)
    #: The caller no longer waits for the answer.
    abandoned: bool = False


class Lane:
    """A queue of questions for ``workers`` green threads, each of which takes ``batch_size`` questions at a time.

    Fair between clients: takes one question of each client (by claims) in turn.
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
        """Add to the end of the queue, or with ``first`` to the front, for a question that has waited before."""
        self.size += 1
        of_client = self._waiting.setdefault(asked.question.claims, deque())
        if first:
            of_client.appendleft(asked)
            self._waiting.move_to_end(asked.question.claims, last=False)
        else:
            of_client.append(asked)

    def next_batch(self) -> list[Asked]:
        """Take up to ``batch_size`` questions whose callers still wait."""
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
        """Take all questions."""
        found = [asked for of_client in self._waiting.values() for asked in of_client]
        self._waiting.clear()
        self.size = 0
        return found


class Slow:
    """The channels and clients whose questions have recently been slow."""

    #: Seconds for which an entry is kept; maximum number of entries; slow channels after which a client counts as slow.
    seconds = 60.0
    max_entries = 10_000
    times = 3

    def __init__(self) -> None:
        self._channels: OrderedDict[str, float] = OrderedDict()
        self._clients: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def add(self, question: Question) -> bool:
        """Record a slow question. Return whether its channel was not known to be slow."""
        until = time.monotonic() + self.seconds
        news = not self._is_known(self._channels.get(question.channel, 0.0))
        self._channels[question.channel] = until
        self._channels.move_to_end(question.channel)
        if news:
            # A client that keeps finding new slow channels must not delay other clients.
            before, times = self._clients.get(question.claims, (0.0, 0))
            self._clients[question.claims] = (until, times + 1 if self._is_known(before) else 1)
            self._clients.move_to_end(question.claims)
        for known in (self._channels, self._clients):
            while len(known) > self.max_entries:
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
