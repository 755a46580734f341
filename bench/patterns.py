"""Measures what patterns cost between a notification and the clients' sockets, as CPU times.

``python bench/patterns.py`` takes a minute. It uses real sockets, which another process drains, and no database. With
``--baseline PATH``, another checkout, it only compares the fan-out without any pattern: batches of broadcasts alternate
between the two packages in one process, so that drift affects both alike.
"""

import argparse
import os
import selectors
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
#: Clients in the room → batches, for each of two packages.
ROOMS = {1: 600, 10: 400, 1000: 40}
BATCH = 100
PAYLOAD = '{"n":1,"text":"' + "x" * 80 + '"}'
#: What the clients of a case subscribe to, and how many there are of each kind.
OTHERS = tuple(f"x{n}:*" for n in range(10_000))
CASES: dict[str, list[tuple[int, tuple[str, ...]]]] = {
    "channel": [(1000, ("orders:1",))],
    "channel, and 10 others with a pattern": [(1000, ("orders:1",)), (10, ("orders:*",))],
    "one pattern": [(1000, ("orders:*",))],
    "channel and pattern, each client": [(1000, ("orders:1", "orders:*"))],
    "channel, and 10,000 patterns that do not match": [(1000, ("orders:1",)), (1, OTHERS)],
}

Receive = Callable[[list[tuple[str, str]]], None]


def load(path: Path, clients: list[tuple[int, tuple[str, ...]]]) -> tuple[Receive, list[Any]]:
    """Create a server from the package at ``path``, with subscribed clients.

    Return its function that receives notifications, and the clients' ends of the sockets.
    """
    for name in [name for name in sys.modules if name.partition(".")[0] == "socketio_pg"]:
        del sys.modules[name]
    sys.path.insert(0, str(path))
    from socketio_pg.engine.socket import Socket
    from socketio_pg.engine.transport import WebSocketTransport
    from socketio_pg.websocket import SocketServer

    server = SocketServer(dsn="postgresql://127.0.0.1:9/nowhere")
    sys.path.remove(str(path))
    sockets = server.socketio.server
    readers = []
    for number, names in enumerate(names for count, names in clients for _ in range(count)):
        ours, theirs = _original("socket").socketpair()
        ours.setblocking(False)
        made = sockets.eio.sockets[f"eio-{number}"] = Socket(sockets.eio, f"eio-{number}", polling=False)
        made.connection = WebSocketTransport(ours, lambda message: None, lambda reason: None, 1_000_000, 1_000_000)
        sid = sockets.manager.connect(f"eio-{number}", "/")
        server.pubsub.hub.add(sid)
        for name in names:
            server.pubsub.hub.subscribe(sid, name)
            sockets.enter_room(sid, name)
        readers.append(theirs)
    return server.pubsub._dispatcher.on_notifications, readers


def drain(readers: list[Any]) -> int:
    """Read all sockets in another process. Return its id."""
    child: int = _original("os").fork()
    if child:
        return child
    selector = _original("select").epoll()
    for reader in readers:
        selector.register(reader.fileno(), selectors.EVENT_READ)
    while True:
        for descriptor, _ in selector.poll():
            _original("os").read(descriptor, 1 << 20)


def measure(loaded: list[tuple[Receive, list[Any]]], batches: int) -> list[float]:
    """Return the median CPU time of a broadcast in microseconds, for each of the loaded servers in turn."""
    child = drain([reader for _, readers in loaded for reader in readers])
    spent: list[list[float]] = [[] for _ in loaded]
    try:
        for number in range(batches + 1):
            order = list(enumerate(loaded))
            for index, (receive, _) in order if number % 2 else reversed(order):
                began = time.process_time()
                for count in range(BATCH):
                    receive([("orders:1", PAYLOAD)])
                    if count % 20 == 19:
                        _original("time").sleep(0.002)  # the other process reads
                spent[index].append(time.process_time() - began)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return [statistics.median(times[1:]) / BATCH * 1e6 for times in spent]  # the first batch is a warm-up


def _original(name: str) -> Any:
    import eventlet.patcher

    return eventlet.patcher.original(name)


def rows(baseline: Path | None) -> Iterator[str]:
    """Yield the lines of the table."""
    if baseline is not None:
        yield f"{'clients':>8}{'µs/broadcast':>16}{'baseline':>10}{'ratio':>8}"
        for size, batches in ROOMS.items():
            new, old = measure([load(path, [(size, ("orders:1",))]) for path in (ROOT, baseline)], batches)
            yield f"{size:>8}{new:>16.1f}{old:>10.1f}{new / old:>8.3f}"
        return
    yield f"{'1,000 clients subscribe to':<50}{'µs/broadcast':>14}{'ratio':>8}"
    first = load(ROOT, CASES["channel"])
    for name, clients in CASES.items():
        usual, found = measure([first, load(ROOT, clients)], 30)
        yield f"{name:<50}{found:>14.0f}{found / usual:>8.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, help="another checkout")
    baseline = parser.parse_args().baseline
    warnings.simplefilter("ignore")
    import eventlet

    eventlet.monkey_patch()
    for row in rows(baseline):
        print(row, flush=True)


if __name__ == "__main__":
    main()
