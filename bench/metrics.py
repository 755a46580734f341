"""Measures the cost of the metrics between a notification and the clients' sockets, as a ratio of CPU times.

``python bench/metrics.py`` takes a minute. It loads the package twice in one process: unchanged, and without the
statements that count. Batches of broadcasts alternate between the two, so that drift affects both alike. It uses real
sockets, which another process drains after each batch, and no database.
"""

import ast
import importlib.util
import os
import selectors
import signal
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

#: Clients in the room → batches of 100 broadcasts, for each of the two copies.
ROOMS = {1: 1000, 10: 600, 1000: 30}
BATCH = 100
PAYLOAD = '{"n":1,"text":"' + "x" * 80 + '"}'
NOTIFICATION = [("bench", PAYLOAD)]

Receive = Callable[[list[tuple[str, str]]], None]


class _Without(ast.NodeTransformer):
    """Removes the statements that add to ``fan_out``, and the sums that are computed for them."""

    def __init__(self) -> None:
        self.removed = 0

    def visit(self, node: ast.AST) -> Any:
        node = self.generic_visit(node)
        targets: list[ast.expr] = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
        )
        names = {ast.unparse(target) for target in targets}
        if any(name.startswith("fan_out.") or name in ("sent", "sent_frames", "sent_bytes") for name in names):
            self.removed += 1
            return ast.copy_location(ast.Pass(), node)
        return node


def import_without(name: str) -> None:
    """Import a module without its counting statements, in place of the original for all later imports."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    without = _Without()
    tree = ast.fix_missing_locations(without.visit(ast.parse(Path(spec.origin).read_text("utf-8"))))
    assert without.removed, f"nothing is counted in {name}"
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(tree, spec.origin, "exec"), module.__dict__)


def load(clients: int, *, counting: bool) -> tuple[Receive, list[Any]]:
    """Create a server from its own copy of the package, with subscribed clients.

    Return its function that receives notifications, and the clients' ends of the sockets.
    """
    for name in [name for name in sys.modules if name.partition(".")[0] == "socketio_pg"]:
        del sys.modules[name]
    if not counting:
        import_without("socketio_pg.protocol.sending")
        import_without("socketio_pg.protocol.fanout")
        import_without("socketio_pg.pubsub.dispatch")
    from socketio_pg.engine.socket import Socket
    from socketio_pg.engine.transport import WebSocketTransport
    from socketio_pg.websocket import SocketServer

    server = SocketServer(dsn="postgresql://127.0.0.1:9/nowhere")
    sockets = server.socketio.server
    readers = []
    for number in range(clients):
        ours, theirs = _original("socket").socketpair()
        ours.setblocking(False)
        made = sockets.eio.sockets[f"eio-{number}"] = Socket(sockets.eio, f"eio-{number}", polling=False)
        made.connection = WebSocketTransport(ours, lambda message: None, lambda reason: None, 1_000_000, 1_000_000)
        sid = sockets.manager.connect(f"eio-{number}", "/")
        server.pubsub.hub.add(sid)
        server.pubsub.hub.subscribe(sid, "bench")
        sockets.enter_room(sid, "bench")
        readers.append(theirs)
    return server.pubsub._dispatcher.on_notifications, readers


def drain(readers: list[Any], size: int) -> tuple[int, int]:
    """Read all sockets in another process. Return its id, and a pipe that gets one byte per ``size`` bytes read."""
    real = _original("os")
    done, signal_end = real.pipe()
    child = real.fork()
    if child:
        real.close(signal_end)
        return child, done
    selector = _original("select").epoll()
    for reader in readers:
        selector.register(reader.fileno(), selectors.EVENT_READ)
    left = size
    while True:
        for descriptor, _ in selector.poll():
            left -= len(real.read(descriptor, 1 << 20))
        while left <= 0:
            real.write(signal_end, b".")
            left += size


def measure(clients: int, batches: int) -> tuple[list[float], list[float]]:
    """Return the CPU seconds of each batch, with and without counting."""
    (with_it, readers_with), (without, readers_without) = load(clients, counting=True), load(clients, counting=False)
    frame = len(f'42["event",{{"channel":"bench","payload":{PAYLOAD}}}]'.encode()) + 4  # a header of four bytes
    child, done = drain(readers_with + readers_without, BATCH * clients * frame)
    spent: dict[Receive, list[float]] = {with_it: [], without: []}
    try:
        for number in range(batches + 1):
            for receive in (with_it, without) if number % 2 else (without, with_it):
                began = time.process_time()
                for _ in range(BATCH):
                    receive(NOTIFICATION)
                spent[receive].append(time.process_time() - began)
                os.read(done, 1)  # wait until all is read
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return spent[with_it][1:], spent[without][1:]  # the first batch is a warm-up


def _original(name: str) -> Any:
    import eventlet.patcher

    return eventlet.patcher.original(name)


def main() -> None:
    warnings.simplefilter("ignore")
    import eventlet

    eventlet.monkey_patch()
    print(f"{'clients':>8}{'with, µs/broadcast':>24}{'without':>10}{'ratio':>8}")
    for clients, batches in ROOMS.items():
        with_it, without = (statistics.median(times) / BATCH * 1e6 for times in measure(clients, batches))
        print(f"{clients:>8}{with_it:>24.1f}{without:>10.1f}{with_it / without:>8.3f}", flush=True)


if __name__ == "__main__":
    main()
