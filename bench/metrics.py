"""What counting costs on the way from a notification to the clients' sockets: CPU seconds with it, by those without.

``python bench/metrics.py`` takes two minutes. The same code, once as it is and once without the statements that count,
in processes of their own that take turns. Real sockets, which a process of its own reads empty; no database.
"""

import argparse
import ast
import importlib.util
import os
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
#: Clients in the room, and batches of 100 broadcasts.
ROOMS = {1: 300, 10: 120, 1000: 4}
BATCH = 100
PAYLOAD = '{"n":1,"text":"' + "x" * 80 + '"}'


class _Without(ast.NodeTransformer):
    """Takes out what adds to ``fan_out``, and the sums that are made for it."""

    def __init__(self) -> None:
        self.taken = 0

    def visit(self, node: ast.AST) -> Any:
        node = self.generic_visit(node)
        targets: list[ast.expr] = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
        )
        names = {ast.unparse(target) for target in targets}
        if any(name.startswith("fan_out.") or name in ("sent", "sent_frames", "sent_bytes") for name in names):
            self.taken += 1
            return ast.copy_location(ast.Pass(), node)
        return node


def _import_without(name: str) -> None:
    """Import a module in which nothing is counted, for all who import it later."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    without = _Without()
    tree = ast.fix_missing_locations(without.visit(ast.parse(Path(spec.origin).read_text("utf-8"))))
    assert without.taken, f"nothing is counted in {name}"
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(tree, spec.origin, "exec"), module.__dict__)


def measure(*, counting: bool) -> list[float]:
    """CPU seconds for each of ROOMS, in this process."""
    import eventlet

    eventlet.monkey_patch()
    if not counting:
        for name in ("socketio_pg.fanout", "socketio_pg.pubsub"):
            _import_without(name)
    return [_room(clients, batches) for clients, batches in ROOMS.items()]


def _room(clients: int, batches: int) -> float:
    from socketio_pg.websocket import SocketServer

    server = SocketServer(dsn="postgresql://127.0.0.1:9/nowhere")
    readers = [_client(server, number) for number in range(clients)]
    frame = len(f'42["event",{{"channel":"bench","payload":{PAYLOAD}}}]') + 2 + 2 * (len(PAYLOAD) > 80)
    child, done = _drain(readers, BATCH * clients * frame)
    try:
        return _broadcast(server.pubsub._on_notifications, batches, done)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _broadcast(receive: Callable[[list[tuple[str, str]]], None], batches: int, done: int) -> float:
    spent = 0.0
    notification = [("bench", PAYLOAD)]
    for number in range(batches + 1):
        began = time.process_time()
        for _ in range(BATCH):
            receive(notification)
        if number:  # the first warms up
            spent += time.process_time() - began
        os.read(done, 1)  # all of it was read
    return spent


def _client(server: Any, number: int) -> socket.socket:
    """A client of the server, subscribed; returns the other end of its connection."""
    import eventlet.patcher

    from socketio_pg.engine_socket import Socket
    from socketio_pg.transport import Connection

    original: Any = eventlet.patcher.original("socket")
    ours, theirs = original.socketpair()
    ours.setblocking(False)
    eio = server.socketio.server.eio
    made = eio.sockets[f"eio-{number}"] = Socket(eio, f"eio-{number}", polling=False)
    made.connection = Connection(ours, lambda message: None, lambda reason: None, 1_000_000, 1_000_000)
    sid = server.socketio.server.manager.connect(f"eio-{number}", "/")
    server.pubsub.hub.add(sid)
    server.pubsub.hub.subscribe(sid, "bench")
    server.socketio.server.enter_room(sid, "bench")
    return theirs  # type: ignore[no-any-return]


def _drain(readers: list[socket.socket], size: int) -> tuple[int, int]:
    """Read all of it in another process. Returns its id, and a descriptor that gets a byte for each ``size`` bytes."""
    import eventlet.patcher

    real: Any = eventlet.patcher.original("os")
    done, tell = real.pipe()
    child = real.fork()
    if child:
        real.close(tell)
        return child, done
    selector: Any = eventlet.patcher.original("select").epoll()
    for reader in readers:
        selector.register(reader.fileno(), selectors.EVENT_READ)
    left = size
    while True:
        for descriptor, _ in selector.poll():
            left -= len(real.read(descriptor, 1 << 20))
        while left <= 0:
            real.write(tell, b".")
            left += size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--once", choices=["with", "without"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(*measure(counting=options.once == "with"))
        return
    found: dict[str, list[list[float]]] = {"with": [], "without": []}
    for number in range(options.repeat):
        for kind in ("with", "without") if number % 2 else ("without", "with"):
            result = subprocess.run(
                [sys.executable, __file__, "--once", kind],
                env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            found[kind].append([float(word) for word in result.stdout.split()])
    print(f"{'clients':>8}{'with, µs a broadcast':>24}{'without':>10}{'ratio':>8}{'of pairs':>18}")
    for row, (clients, batches) in enumerate(ROOMS.items()):
        took = {kind: [trial[row] for trial in trials] for kind, trials in found.items()}
        each = {kind: statistics.median(times) / batches / BATCH * 1e6 for kind, times in took.items()}
        pairs = [one / other for one, other in zip(took["with"], took["without"], strict=True)]
        print(
            f"{clients:>8}{each['with']:>24.1f}{each['without']:>10.1f}{each['with'] / each['without']:>8.3f}"
            f"{f'{min(pairs):.3f} to {max(pairs):.3f}':>18}"
        )


if __name__ == "__main__":
    main()
