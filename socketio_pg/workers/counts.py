"""Counts of connections and attempts of all workers of a node, in a file that each of them maps into its memory.

The file is a table: a row for each address and for each total, with a column for each worker. Only the worker itself
writes to its column, one word at a time, so a count that an interrupted worker leaves behind is never wrong; the
column is cleared after its death. A limit is checked against the sum of a row, under a lock of the kernel, which
releases it when its holder dies. The worker counts first, checks then, and takes the count back when it is too much:
without the lock this could refuse too much, and not admit too much. Far from the limit it needs no lock.
"""

import functools
import hashlib
import mmap
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, lockf
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from socketio_pg.workers.loads import MAX_WORKERS
from socketio_pg.workers.local_counts import Exceeded, full_again, now_ns

P = ParamSpec("P")
T = TypeVar("T")

#: The name of the file in a node's directory. Change its number with the layout: versions must not share a file.
FILE_NAME: Final = "counts-1"
#: The maximum number of workers.
SLOTS = MAX_WORKERS
#: Seconds after which a holder of the lock counts as suspended, and loses it.
PATIENCE = 0.003
#: Seconds between two attempts to lock, and between two searches for dead workers when a limit is reached.
PAUSE, SEARCH = 0.00002, 0.25
#: Seconds for which a new worker waits for its slot, which others lock for a moment to clear it.
CLAIM = 1.0

#: Words of 8 bytes of each column: a multiple of a page's, for about 100,000 addresses.
ROWS = 100_352
#: The rows in which an address may be. It is looked for in all of them, so there are no chains to repair.
WINDOW = 64
#: The rows at the end: two totals, and whether the column's worker lives.
_TOTALS = ROWS - 3
_ALIVE = ROWS - 1

#: The layout, in words: the header, the keys of rows, the two buckets of rows, the columns.
_HEADER = 512
_BUCKETS = _HEADER + ROWS
_COLUMNS = _BUCKETS + 2 * ROWS
#: Words of the header: the key of the digests, the number of the lock, how often it was locked, the used columns.
_SECRET, _LOCK, _TURN, _USED = range(4)
_AT_ONCE = LOCK_EX | LOCK_NB
#: What lockf() raises when another process has the lock: POSIX allows both.
_LOCKED = (BlockingIOError, PermissionError)
#: A locked byte of the file for each living worker, by slot; and the first of those that are the lock, by number.
_LIVING, _LOCKS = 0, 1_000

#: A word of an address has the number of connections in its upper half, and of the pending ones in its lower half.
_CONNECTION, _PENDING = 1 << 32, 1
_LOW = _CONNECTION - 1
#: The distance to a limit from which a worker counts without the lock: more than what all others can add meanwhile.
_FAR = 2 * SLOTS
_UNLIMITED = 1 << 32
#: In place of a row, for an address that has none.
_NOWHERE = -1


class _LockLostError(Exception):
    """Another worker has taken the lock away: this one was suspended while it had it."""


class SharedCounts:
    """The :class:`Counts` of all workers of a node, as one of them uses them after :meth:`join`.

    ``path`` is the file, which is made if it is missing. There must be one object for a process and file, since locks
    belong to the process.

    The lock is held for microseconds. A holder that is suspended loses it after :data:`PATIENCE` seconds, for which
    the others wait once, in the kernel; it notices that before it writes to what is not its own.

    There is room for about 100,000 addresses. Those without connections make room for others, the one with the fullest
    buckets first. An address that finds no room is counted by each worker for itself, and may make any number of
    attempts.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path

    def join(self, slot: int, slots: int = SLOTS) -> None:
        """Open the file as the worker that has ``slot``. Call it after the fork, before anything else.

        Raises RuntimeError when the slot belongs to a living process, and OSError, for instance when there is no space.
        """
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        # A store to a page that has no space on the disk would end the process with SIGBUS.
        os.posix_fallocate(self._file, 0, 8 * _COLUMNS)
        os.posix_fallocate(self._file, 8 * (_COLUMNS + slot * ROWS), 8 * ROWS)
        size = 8 * (_COLUMNS + slots * ROWS)
        if os.fstat(self._file).st_size < size:
            os.ftruncate(self._file, size)
        self._map = mmap.mmap(self._file, size)
        self._words = memoryview(self._map).cast("Q")
        self._keys = self._words[_HEADER:_BUCKETS]
        self._buckets = tuple(self._words[start : start + ROWS] for start in (_BUCKETS, _BUCKETS + ROWS))
        self._columns = self._words[_COLUMNS:]
        self._own = self._columns[slot * ROWS : (slot + 1) * ROWS]
        self._slot = slot
        #: The number of the lock that this worker has, or had last.
        self._number = 0
        #: The number and turn of the lock that this worker waits for, or waited for last, and since when.
        self._held, self._held_since = (-1, -1), 0.0
        self._next_search = 0.0
        #: Address → its row, or _NOWHERE; and the word in this worker's column. For those with a connection.
        self._mine: dict[str, tuple[int, int]] = {}
        self._claim()
        keyed = hashlib.blake2s(digest_size=8, key=self._words[_SECRET].to_bytes(8, sys.byteorder))
        #: The key of an address and the first row of its window. They depend on a secret, so that clients cannot choose
        #: addresses that share a window.
        self._place = functools.lru_cache(4096)(functools.partial(_place, keyed))

    # -- Counts --------------------------------------------------------------------------------------------------------

    def take(self, bucket: int, address: str, rate: float) -> bool:
        return self._locked(self._take, self._buckets[bucket], address, rate)

    def may_take(self, bucket: int, address: str, rate: float) -> bool:
        row = self._find(address)
        return row == _NOWHERE or full_again(self._buckets[bucket][row], now_ns(), rate) is not None

    def open(self, address: str, most: int, most_pending: int) -> Exceeded | None:
        most, most_pending = most or _UNLIMITED, most_pending or _UNLIMITED
        # A row that has connections of this worker cannot become that of another address meanwhile.
        if address in self._mine and self._open(address, most - _FAR, most_pending - _FAR) is None:
            return None
        exceeded = self._locked(self._open, address, most, most_pending)
        if exceeded is not None and self._forget_dead():
            exceeded = self._locked(self._open, address, most, most_pending)
        return exceeded

    def admit(self, address: str) -> None:
        self._subtract(address, 0, pending=True)

    def close(self, address: str, *, pending: bool) -> None:
        self._subtract(address, _CONNECTION, pending=pending)

    def grow(self, total: int, own: int, most: int) -> bool:
        row = _TOTALS + total
        if self._grow(row, own, most - _FAR) or self._locked(self._grow, row, own, most):
            return True
        return self._forget_dead() and self._locked(self._grow, row, own, most)

    def put(self, total: int, own: int) -> None:
        self._own[_TOTALS + total] = own

    def sum(self, total: int) -> int:
        return self._sum(_TOTALS + total)

    @property
    def workers(self) -> int:
        """The number of workers, with those whose death nobody has noticed yet."""
        return self._sum(_ALIVE)

    # -- workers -------------------------------------------------------------------------------------------------------

    def forget(self, slot: int) -> bool:
        """Clear the counts of a worker that has died. Return False, and do nothing, when it lives or has no counts."""
        if slot == self._slot or not self._columns[slot * ROWS + _ALIVE] or not self._try_lock(_LIVING + slot):
            return False
        try:
            self._clear(slot)
        finally:
            self._unlock(_LIVING + slot)
        return True

    def leave(self) -> None:
        """Clear the counts of this worker and close the file."""
        self._clear(self._slot)
        for view in (self._own, self._columns, *self._buckets, self._keys, self._words):
            view.release()
        self._map.close()
        os.close(self._file)

    def _claim(self) -> None:
        deadline = time.monotonic() + CLAIM
        while not self._try_lock(_LIVING + self._slot):
            if time.monotonic() > deadline:
                raise RuntimeError(f"slot {self._slot} belongs to another process")
            _pause()
        self._clear(self._slot)
        self._locked(self._set_up)
        self._own[_ALIVE] = 1

    def _set_up(self) -> None:
        self._check_lock()
        if not self._words[_SECRET]:
            self._words[_SECRET] = secrets.randbits(64) | 1
        self._words[_USED] = max(self._words[_USED], self._slot + 1)

    def _clear(self, slot: int) -> None:
        start, end = (8 * (_COLUMNS + slot * ROWS + row) for row in (0, _ALIVE))
        self._map[start:end] = bytes(end - start)
        # Last: others look for dead workers only where this says that there is one.
        self._columns[slot * ROWS + _ALIVE] = 0

    def _forget_dead(self) -> bool:
        """Clear the counts of dead workers. Return whether there were any. Does nothing soon after the last time."""
        now = time.monotonic()
        if now < self._next_search:
            return False
        self._next_search = now + SEARCH
        return sum(self.forget(slot) for slot in range(self._words[_USED])) > 0

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _sum(self, row: int) -> int:
        return sum(self._columns[row : self._words[_USED] * ROWS : ROWS])

    def _find(self, address: str) -> int:
        """Return the row of an address, or _NOWHERE."""
        mine = self._mine.get(address)
        if mine is not None:
            return mine[0]
        key, first = self._place(address)
        start = 8 * (_HEADER + first)
        found = self._map.find(key, start, start + 8 * WINDOW)
        while found > 0 and found % 8:  # the end of one key and the beginning of the next
            found = self._map.find(key, found + 1, start + 8 * WINDOW)
        return _NOWHERE if found < 0 else found // 8 - _HEADER

    def _find_or_add(self, address: str) -> int:
        """Return the row of an address, a new one if need be; _NOWHERE if there is no room. Needs the lock."""
        row = self._find(address)
        return row if row != _NOWHERE or address in self._mine else self._add(address)

    def _add(self, address: str) -> int:
        key, first = self._place(address)
        keys = self._keys[first : first + WINDOW].tolist()
        row = first + keys.index(0) if 0 in keys else self._least_useful(first)
        if row != _NOWHERE:
            self._check_lock()
            self._keys[row] = 0
            for bucket in self._buckets:
                bucket[row] = 0
            self._keys[row] = int.from_bytes(key, sys.byteorder)
        return row

    def _least_useful(self, first: int) -> int:
        """Return the row of a window that has no connections, with the fullest buckets; _NOWHERE if there is none."""
        buckets = [bucket[first : first + WINDOW].tolist() for bucket in self._buckets]
        for _, row in sorted((max(times), row) for row, times in enumerate(zip(*buckets, strict=True), first)):
            if not self._sum(row):
                return row
        return _NOWHERE

    def _take(self, bucket: memoryview, address: str, rate: float) -> bool:
        row = self._find_or_add(address)
        if row == _NOWHERE:
            return True
        taken = full_again(bucket[row], now_ns(), rate)
        if taken is None:
            return False
        self._check_lock()
        bucket[row] = taken
        return True

    def _open(self, address: str, most: int, most_pending: int) -> Exceeded | None:
        row, before = self._mine.get(address) or (self._find_or_add(address), 0)
        word = before + _CONNECTION + _PENDING
        self._store(row, word)
        every = word if row == _NOWHERE else self._sum(row)
        if every >> 32 > most:
            self._store(row, before)
            return "connections"
        if every & _LOW > most_pending:
            self._store(row, before)
            return "pending"
        self._mine[address] = row, word
        return None

    def _subtract(self, address: str, number: int, *, pending: bool) -> None:
        row, word = self._mine.get(address, (_NOWHERE, 0))
        if not word:
            return
        word -= number + (pending and word & _LOW > 0)
        self._store(row, word)
        if word:
            self._mine[address] = row, word
        else:
            del self._mine[address]

    def _store(self, row: int, word: int) -> None:
        if row != _NOWHERE:
            self._own[row] = word

    def _grow(self, row: int, own: int, most: int) -> bool:
        before = self._own[row]
        self._own[row] = own
        if self._sum(row) <= most:
            return True
        self._own[row] = before
        return False

    # -- the lock ------------------------------------------------------------------------------------------------------

    def _locked(self, change: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``change`` while no other worker does this; again if it has raised _LockLostError.

        The lock is a byte of the file, and the next one after its holder was suspended.
        """
        words, file = self._words, self._file
        while True:
            number = self._number = words[_LOCK]
            try:
                lockf(file, _AT_ONCE, 1, _LOCKS + number)
            except _LOCKED:
                self._wait(number)
                continue
            try:
                if words[_LOCK] == number:
                    words[_TURN] += 1
                    return change(*args, **kwargs)
            except _LockLostError:
                pass
            finally:
                lockf(file, LOCK_UN, 1, _LOCKS + number)

    def _wait(self, number: int) -> None:
        """Wait a moment for the lock; take it away from a holder that has it for too long."""
        held, now = (number, self._words[_TURN]), time.monotonic()
        if held != self._held:
            self._held, self._held_since = held, now
        elif now > self._held_since + PATIENCE:
            self._words[_LOCK] = number + 1
            return
        _pause()

    def _check_lock(self) -> None:
        if self._words[_LOCK] != self._number:
            raise _LockLostError

    def _try_lock(self, byte: int) -> bool:
        # Not flock(), whose locks the children of a process would share.
        try:
            lockf(self._file, _AT_ONCE, 1, byte)
        except _LOCKED:
            return False
        return True

    def _unlock(self, byte: int) -> None:
        lockf(self._file, LOCK_UN, 1, byte)


def _place(keyed: hashlib.blake2s, address: str) -> tuple[bytes, int]:
    hash = keyed.copy()
    hash.update(address.encode("utf-8", "surrogatepass"))
    key = hash.digest()
    if not any(key):  # an empty row
        key = b"\1" * 8
    return key, int.from_bytes(key, sys.byteorder) % (_TOTALS - WINDOW)


def _pause() -> None:
    # time.sleep() may be replaced with one that lets other green threads run, which must find nothing half done.
    signal.sigtimedwait((), PAUSE)
