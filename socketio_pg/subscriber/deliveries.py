"""What waits for a Subscriber's handlers, with what it costs in memory."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from socketio_pg.subscriber.subscription import Member, Position


@dataclass(frozen=True, slots=True)
class Delivery:
    """Something for a handler; with ``moved``, ``position`` is where its subscription is then."""

    subscription: Member
    callback: Callable[[Any], object]
    argument: Any
    position: Position | None = None
    moved: bool = False
    cost: int = 0
    last: bool = False


class Deliveries:
    """What waits for the handlers, with what it costs in memory. Put under the lock, taken by one thread without it."""

    def __init__(self, lock: threading.RLock, most: int) -> None:
        self._filled = threading.Condition(lock)
        self._waiting: deque[Delivery] = deque()
        self._most = most
        #: All that was ever put costs, and all that was taken: each is counted by one thread.
        self._put = self._taken = 0

    @property
    def cost(self) -> int:
        """Bytes that wait, about."""
        return self._put - self._taken

    @property
    def full(self) -> bool:
        return self.cost > self._most

    @property
    def relaxed(self) -> bool:
        return self.cost <= self._most // 2

    def put(self, delivery: Delivery) -> None:
        self._waiting.append(delivery)
        self._put += delivery.cost
        self._filled.notify()

    def get(self, closed: Callable[[], bool]) -> Delivery | None:
        """The next; None when ``closed()``."""
        if not self._waiting:
            with self._filled:
                self._filled.wait_for(lambda: self._waiting or closed())
        if closed():
            return None
        delivery = self._waiting.popleft()
        self._taken += delivery.cost
        return delivery

    def wake(self) -> None:
        self._filled.notify()
