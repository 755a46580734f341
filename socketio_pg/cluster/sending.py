"""The sending half of the bus: what waits for other nodes, numbered and gathered into texts."""

import contextlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Sequence

from socketio_pg.cluster.carriers import Carrier
from socketio_pg.cluster.processes import Process
from socketio_pg.core import green, metrics
from socketio_pg.core.backoff import Backoff

#: The item of a text that asks the other nodes which processes they have.
HELLO = "hello"


class Sending:
    """Sends items, which are JSON, to other nodes. ``own()`` returns this process.

    Each text has the number of the last message: from it others learn that they have missed some, also such as could
    not be sent.
    """

    #: Seconds after the first own text has come back until the other processes must have answered it.
    settle_seconds = 1.0
    #: Seconds between the first two greetings, until one has come back, and at most.
    greet_seconds = (0.5, 3.0)
    #: Seconds between two attempts after a failure: the first pause, and the longest.
    retry_seconds = (0.1, 3.0)
    #: The maximum size of what waits, in characters, and of what is sent together.
    max_waiting, batch_characters = 16_000_000, 500_000

    def __init__(self, carrier: Carrier, own: Callable[[], Process]) -> None:
        self._carrier = carrier
        self._own = own
        #: Items, and the numbers of those that are messages; their characters together.
        self._waiting: deque[tuple[int | None, str]] = deque()
        self._characters = 0
        #: The number of the last message; when one was last not sent, because no other node was known (monotonic).
        self._number = 0
        self._skipped_at = -math.inf
        #: To send a text even without items: it has the number of the last message.
        self._mark = False
        #: Set when there is something to send. True while a text is on its way.
        self._wanted = green.Event()
        self._sending = False
        #: This process is about to leave: others need not greet it.
        self.leaving = False
        #: A text was sent; and when one has come back (monotonic).
        self.greeted = False
        self._heard_at: float | None = None
        self._worker = green.Worker()

    def start(self) -> None:
        """Greet the other nodes, and send from then on."""
        self._worker.start(self._run)

    def stop(self) -> None:
        """Send nothing more."""
        self._worker.stop()

    def wait_idle(self, seconds: float) -> None:
        """Wait until what waits is sent, for at most ``seconds``."""
        deadline = time.monotonic() + seconds
        while not self.idle and self._worker.running and time.monotonic() < deadline:
            green.sleep(0.01)

    @property
    def idle(self) -> bool:
        """Whether nothing waits or is on its way."""
        return not self._waiting and not self._sending

    @property
    def heard(self) -> bool:
        """Whether a text of this process has come back, since :meth:`greet`."""
        return self._heard_at is not None

    @property
    def settled(self) -> bool:
        """Whether the other nodes had enough time to answer the greeting."""
        return self._heard_at is not None and time.monotonic() - self._heard_at > self.settle_seconds

    def come_back(self) -> None:
        """Note that a text of this process has come back."""
        if self._heard_at is None:
            self._heard_at = time.monotonic()

    def greet(self) -> None:
        """Greet the other nodes again."""
        self._heard_at = None
        self._wanted.send()

    def next_number(self) -> int:
        """Return the number of the next message, which is then put or skipped."""
        self._number += 1
        return self._number

    def skip(self) -> None:
        """Note that the last message is not sent to other nodes."""
        self._skipped_at = time.monotonic()

    def mark(self) -> None:
        """Send at least the number of the last message."""
        self._mark = True
        self._wanted.send()

    def put(self, item: str, number: int | None = None) -> None:
        """Have an item sent; ``number`` is that of a message. When too much waits, it is dropped."""
        if self._characters + len(item) > self.max_waiting:
            metrics.bus_dropped.labels("too_many").inc()
            self._mark = True
        else:
            self._waiting.append((number, item))
            self._characters += len(item)
        self._wanted.send()

    def text(self, items: Sequence[str]) -> str:
        """Return the text with these items. It describes this process, and has the number of its last message."""
        # Those that wait are not in this text.
        number = next((number - 1 for number, _ in self._waiting if number is not None), self._number)
        now = time.monotonic()
        head = [self._own().to_wire(), now, number, now - self._skipped_at < 5.0, self.leaving]
        return f"[{json.dumps(head, separators=(',', ':'))},[{','.join(items)}]]"

    def _run(self) -> None:
        backoff, greetings = Backoff(*self.retry_seconds), Backoff(*self.greet_seconds)
        while True:
            while not self._carrier.wait(2.0):
                self._drop()
                green.sleep(backoff.next())
            items = self._take()
            if self._heard_at is None:
                items.append(json.dumps([HELLO]))
            if items or self._mark:
                self._mark = False
                self.greeted = self._sending = True
                sent = self._carrier.send([self.text(items)])
                self._sending = False
                if sent:
                    metrics.bus_messages.labels("sent").inc(len(items))
                    backoff.reset()
                else:
                    metrics.bus_dropped.labels("not_sent").inc(len(items))
                    self._mark = True
                    green.sleep(backoff.next())
            if not self._waiting:
                self._wanted = green.Event()
                if self._heard_at is not None:
                    greetings.reset()
                with contextlib.suppress(green.TimedOut):
                    self._wanted.wait(greetings.next() if self._heard_at is None or self._mark else None)

    def _take(self) -> list[str]:
        items: list[str] = []
        characters = 0
        while self._waiting and characters < self.batch_characters:
            item = self._waiting.popleft()[1]
            items.append(item)
            characters += len(item)
        self._characters -= characters
        return items

    def _drop(self) -> None:
        if self._waiting:
            metrics.bus_dropped.labels("not_sent").inc(len(self._waiting))
            self._waiting.clear()
            self._characters = 0
            self._mark = True
