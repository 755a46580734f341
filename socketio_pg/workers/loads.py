"""The load of each worker of a node, in memory that all of them share.

    load = the sessions that the worker has told + the connections that the others have passed to it since

Each word has one writer, so nothing needs a lock, and a worker that is killed leaves nothing half done. Passed and
received connections are counted for each pair of workers, by either side. Both counts carry the names of the pair: they
end with either worker, and a successor in a slot begins with none.
"""

import mmap
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

#: The most workers of one node.
MAX_WORKERS: Final = 64
#: The layout, in words of 8 bytes: how many workers are wanted; then for each slot the sessions that its worker has
#: told plus one (0: it wants none, or there is no worker), when it has told that (monotonic ns, which all processes
#: share), and its name.
_WANTED, _TOLD, _SINCE, _NAMES = 0, 1, 1 + MAX_WORKERS, 1 + 2 * MAX_WORKERS
#: A row of counts for each worker that passes, and one for each that receives, with a word for each other worker.
_PASSED = 1 + 3 * MAX_WORKERS
_RECEIVED = _PASSED + MAX_WORKERS * MAX_WORKERS
_WORDS = _RECEIVED + MAX_WORKERS * MAX_WORKERS
#: The lower half of such a word is the count, which begins again after the last number; the upper half is the pair.
_COUNT = (1 << 32) - 1


class Loads:
    """The loads in the file ``path``, as one process uses them."""

    #: Seconds for which a load that was told counts. A worker tells it four times a second.
    fresh = 1.0

    def __init__(self, path: Path) -> None:
        self._path = path
        self._words: memoryview | None = None
        self._slot = -1
        #: What this worker has received, by the slot of the sender, as it stands in the file after :meth:`tell`.
        self._received: dict[int, int] = {}

    def create(self) -> None:
        """Make the file, with one worker that is wanted, and map it for this process and those that are forked."""
        self._path.write_bytes(bytes(8 * _WORDS))
        self._map()[_WANTED] = 1

    @property
    def wanted(self) -> int:
        """The number of workers that gunicorn's master wants."""
        return 1 if self._words is None else self._words[_WANTED]

    @wanted.setter
    def wanted(self, workers: int) -> None:
        # In memory that was mapped before the directory became that of the workers: they may have another user than the
        # master, which must follow no link of theirs.
        if self._words is not None:
            self._words[_WANTED] = workers

    def join(self, slot: int, name: bytes) -> None:
        """Be the worker of ``slot``, with a random ``name`` of 4 bytes."""
        words = self._map()
        self._slot = slot
        self._received.clear()
        words[_TOLD + slot] = 0
        words[_NAMES + slot] = int.from_bytes(name, "big")
        self.tell(0)

    def slot_of(self, name: bytes) -> int | None:
        """Return the slot whose newest worker has this name, which may have ended meanwhile; None if none has it."""
        words, word = self._map(), int.from_bytes(name, "big")
        if len(name) != 4 or not word:  # a slot that no worker has had
            return None
        names = words[_NAMES : _NAMES + MAX_WORKERS].tolist()
        return names.index(word) if word in names else None

    def tell(self, sessions: int | None) -> None:
        """Note how many sessions this worker has, counting all connections received so far; None: it wants no more."""
        words, slot = self._map(), self._slot
        # Before what it has received: a reader between the two counts connections twice rather than not at all.
        words[_TOLD + slot] = 0 if sessions is None else sessions + 1
        words[_SINCE + slot] = time.monotonic_ns()
        for sender, word in self._received.items():
            words[_RECEIVED + slot * MAX_WORKERS + sender] = word

    def passing(self, slot: int) -> int:
        """Count a connection that this worker passes to another one.

        Returns the pair of workers, for :meth:`received` there, and :meth:`take_back` here.
        """
        words, cell = self._map(), self._passed_to(slot)
        pair = self._pair(self._slot, slot)
        words[cell] = _counted(words[cell], pair, 1)
        return pair

    def take_back(self, slot: int, pair: int) -> None:
        """Note that such a connection could not be passed."""
        words, cell = self._map(), self._passed_to(slot)
        if words[cell] >> 32 == pair:  # otherwise the count is that of a successor
            words[cell] = _counted(words[cell], pair, -1)

    def received(self, sender: int, pair: int | None) -> None:
        """Note that a connection has arrived: from the next :meth:`tell` on it counts as a session, or not at all.

        ``pair`` is None for one that the sender has not counted.
        """
        if pair == self._pair(sender, self._slot):  # otherwise the sender has ended, and its connections do not count
            self._received[sender] = _counted(self._received.get(sender, 0), pair, 1)

    def of(self, slots: Collection[int], senders: Collection[int]) -> dict[int, int]:
        """Return the number of clients of each worker in ``slots`` that wants more, with those on their way to it.

        ``senders`` are the slots of the workers that live. Leaves out the workers that have not told their load for
        :attr:`fresh` seconds: they are stuck, and could not serve any. This worker is not left out.
        """
        if self._words is None:
            return {}
        words, found, since = self._words, {}, time.monotonic_ns() - int(self.fresh * 1e9)
        for slot in slots:
            # In this order, the opposite of the writers': nothing on its way is missed.
            received = words[_RECEIVED + slot * MAX_WORKERS : _RECEIVED + (slot + 1) * MAX_WORKERS].tolist()
            at, told = words[_SINCE + slot], words[_TOLD + slot]
            if not told or (at < since and slot != self._slot):
                continue
            passed = words[_PASSED + slot : _RECEIVED : MAX_WORKERS].tolist()
            found[slot] = told - 1
            if passed != received:
                for sender in senders:
                    found[slot] += self._on_the_way(passed[sender], received[sender], self._pair(sender, slot))
        return found

    @staticmethod
    def _on_the_way(passed: int, received: int, pair: int) -> int:
        if passed >> 32 != pair:
            return 0
        return (passed - (received if received >> 32 == pair else 0)) & _COUNT

    def _passed_to(self, slot: int) -> int:
        return _PASSED + self._slot * MAX_WORKERS + slot

    def _pair(self, sender: int, receiver: int) -> int:
        words = self._map()
        return words[_NAMES + sender] ^ words[_NAMES + receiver]

    def _map(self) -> memoryview:
        if self._words is None:  # in the master, and in a test whose worker is not forked from it
            with self._path.open("r+b") as file:
                self._words = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
        return self._words


def _counted(word: int, pair: int, number: int) -> int:
    """Return a word of this pair of workers, whose count is higher than that in ``word`` by ``number``."""
    return pair << 32 | ((word if word >> 32 == pair else 0) + number) & _COUNT
