"""Our server, which echoes at the level of Engine.IO where ``ECHO`` is set, and tells what it holds."""

import eventlet

eventlet.monkey_patch()

import gc  # noqa: E402
import os  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import greenlet  # type: ignore[import-untyped]  # noqa: E402
from flask import Flask, request  # noqa: E402

from socketio_pg.logs import configure_logging  # noqa: E402
from socketio_pg.websocket import SocketServer  # noqa: E402

configure_logging("INFO")
app = Flask(__name__)
server = SocketServer(app)
engine = server.socketio.server.eio

if os.environ.get("ECHO"):

    def echo(sid: str, message: str | bytes, own_thread: bool) -> None:
        engine.send(sid, message)

    engine.handle_message = echo
    engine.is_connected = lambda sid: True


@app.get("/held")
def held() -> dict[str, int]:
    gc.collect()
    sockets = list(engine.sockets.values())
    return {
        "green": sum(isinstance(found, greenlet.greenlet) and not found.dead for found in gc.get_objects()),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "sockets": len(sockets),
        "kept": sum(socket.connection._reader.held for socket in sockets if socket.connection is not None),
        "memory_kb": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024,
        "longest_stall_us": int(stall.longest * 1_000_000),
    }


class Stall:
    """How long others had to wait at most since the last reset."""

    longest = 0.0

    def watch(self) -> None:
        while True:
            before = time.perf_counter()
            eventlet.sleep(0.001)
            self.longest = max(self.longest, time.perf_counter() - before - 0.001)


stall = Stall()


@app.get("/watch")
def watch() -> str:
    stall.longest = 0.0
    if not app.extensions.get("watching"):
        app.extensions["watching"] = eventlet.spawn(stall.watch)
    return "ok"


_time = time.time


@app.get("/clock")
def clock() -> str:
    """Set the wall clock of this process forward, or back."""
    offset = float(request.args["offset"])
    time.time = lambda: _time() + offset
    return "ok"
