"""The queue of a Subscriber's handlers, bounded in bytes."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from socketio_pg.core.messages import Position
from socketio_pg.subscriber.subscription import Member


@dataclass(frozen=True, slots=True)
class Delivery:
    """One call of a handler. With ``moved``, ``position`` becomes the subscription's position before the call.

    ``subscription`` is None for a handler that belongs to none.
    """

    subscription: Member | None
    callback: Callable[[Any], object]
    argument: Any
    position: Position | None = None
    moved: bool = False
    cost: int = 0
    last: bool = False


class Deliveries:
    """The queue of the handlers' thread. Many threads put, with the lock held; one thread takes, without it."""

    def __init__(self, lock: threading.RLock, max_cost: int) -> None:
        self._filled = threading.Condition(lock)
        self._waiting: deque[Delivery] = deque()
        self._max_cost = max_cost
        #: Total cost of everything ever put and ever taken. Two counters, because each has only one writer at a time.
        self._put = self._taken = 0

    @property
    def cost(self) -> int:
        """The approximate size of the queue in bytes."""
        return self._put - self._taken

    @property
    def full(self) -> bool:
        return self.cost > self._max_cost

    @property
    def relaxed(self) -> bool:
        return self.cost <= self._max_cost // 2

    def put(self, delivery: Delivery) -> None:
        self._waiting.append(delivery)
        self._put += delivery.cost
        self._filled.notify()

    def get(self, closed: Callable[[], bool]) -> Delivery | None:
        """Wait for the next delivery and return it; return None once ``closed()`` is true."""
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
