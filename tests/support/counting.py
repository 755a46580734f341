"""A worker that counts in a file which it shares with others: ``python -m tests.support.counting PATH SLOT ACTION``.

It prints a line when it is ready, and begins when it reads one.
"""

import contextlib
import itertools
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from socketio_pg.workers.counts import SharedCounts
from socketio_pg.workers.local_counts import ATTEMPTS, CLIENTS, FAILURES, LOGINS

ROOT = Path(__file__).resolve().parent.parent.parent
#: Addresses that all workers use.
ADDRESSES = [f"192.0.2.{number}" for number in range(50)]


def joined(path: str | Path, slot: int) -> SharedCounts:
    """Return the counts of one worker."""
    counts = SharedCounts(path)
    counts.join(slot)
    return counts


@contextlib.contextmanager
def worker(path: Path, slot: int, action: str, green: str = "") -> Iterator[Any]:
    """Run a worker, on the standard library patched by ``green``, until it ends by itself, or the body does."""
    command = [sys.executable, "-m", "tests.support.counting", str(path), str(slot), action]
    environ = os.environ | {"GREEN": green, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ, cwd=ROOT
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def begin(process: Any) -> None:
    """Let a worker begin."""
    process.stdin.write("\n")
    process.stdin.flush()


def count_connections(counts: SharedCounts) -> int:
    """Open connections of one address, of which 400 are allowed. Return the number of opened ones."""
    return sum(counts.open("192.0.2.1", 400, 0) is None for _ in range(1000))


def count_pending(counts: SharedCounts) -> int:
    """Open connections of many addresses, of each of which 3 may be pending. Admit none."""
    return sum(counts.open(address, 0, 3) is None for address in ADDRESSES * 4)


def count_clients(counts: SharedCounts) -> int:
    """Become clients of the node, which may have 400; each second one leaves again, and comes back."""
    own = 0
    for number in range(3000):
        own += counts.grow(CLIENTS, own + 1, 400)
        if number % 2 and own:
            own -= 1
            counts.put(CLIENTS, own)
    while counts.grow(CLIENTS, own + 1, 400):
        own += 1
    return own


def count_attempts(counts: SharedCounts) -> int:
    """Take tokens of a bucket of 100 that gains 20 in a second."""
    return sum(counts.take(ATTEMPTS, "192.0.2.1", 20) for _ in range(1000))


def be_stopped(counts: SharedCounts) -> int:
    """Stop with the lock. Return how often the change was begun."""
    begun = 0

    def change() -> int:
        nonlocal begun
        begun += 1
        if begun == 1:
            print("locked", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
        counts._check_lock()
        return begun

    return counts._locked(change)


def change_anything(counts: SharedCounts, seed: int) -> Iterator[None]:
    """Change all kinds of counts, without an end."""
    rng = random.Random(seed)
    opened: list[str] = []
    for number in itertools.count():
        address = rng.choice(ADDRESSES) if rng.random() < 0.8 else f"198.51.{number % 65_536}"
        counts.take(rng.choice((ATTEMPTS, FAILURES)), address, 1000)
        if counts.open(address, 20, 15) is None:
            opened.append(address)
            if rng.random() < 0.5:
                counts.admit(address)
        while len(opened) > 100 or (opened and rng.random() < 0.4):
            counts.close(opened.pop(rng.randrange(len(opened))), pending=rng.random() < 0.5)
        counts.grow(CLIENTS, len(opened), 300)
        counts.put(LOGINS, rng.randrange(10))
        yield


def kill_others(counts: SharedCounts) -> int:
    """Start workers and kill each in the middle of a change; assert that no counts are wrong. Return how many."""
    path = Path(f"/proc/self/fd/{counts._file}").readlink()
    rng = random.Random(1)
    own = change_anything(counts, 1)
    for _ in range(rounds := 50):
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            others = joined(path, 1)
            for number, _ in enumerate(change_anything(others, rng.randrange(10**6))):
                if number == 20:
                    os.write(writer, b"x")
        os.close(writer)
        while not select.select([reader], [], [], 0)[0]:
            next(own)
        for _ in range(rng.randrange(5)):
            next(own)
        os.kill(pid, signal.SIGKILL)
        for _ in range(5):
            next(own)
        os.waitpid(pid, 0)
        os.close(reader)
        counts.forget(1)  # unless a limit was reached before
        check_alone(counts)
        for _ in range(5):
            next(own)
    return rounds


def check_alone(counts: SharedCounts) -> None:
    """Assert that the table has the counts of this worker only, and no address twice."""
    assert counts.workers == 1
    for total in (CLIENTS, LOGINS):
        assert counts.sum(total) == counts._own[-3 + total]
    rows = [(row, word) for row, word in enumerate(counts._own[:-3].tolist()) if word]
    assert sorted(rows) == sorted(counts._mine.values())
    assert all(counts._sum(row) == word for row, word in rows)
    keys = [key for key in counts._keys.tolist() if key]
    assert len(keys) == len(set(keys))


ACTIONS: dict[str, Callable[[SharedCounts], int]] = {
    action.__name__: action
    for action in (count_connections, count_pending, count_clients, count_attempts, be_stopped, kill_others)
}


def main() -> None:
    if os.environ.get("GREEN"):
        from socketio_pg.core import green

        green.patch()
    _, path, slot, action = sys.argv
    counts = joined(path, int(slot))
    print("ready", flush=True)
    sys.stdin.readline()
    print(ACTIONS[action](counts), flush=True)
    sys.stdin.read()  # its counts stay until it is killed


if __name__ == "__main__":
    main()
