"""An application with binary data, namespaces and callbacks; it reports all state that clients can make grow.

With several workers it reports the sums over all of them.

With ``ECHO`` it echoes Engine.IO messages. ``FILTER_PENALTY``: seconds without new filters for a client whose filters
have cost too much. ``BODY_TIMEOUT``: seconds in which the body of a POST must arrive.
"""

from socketio_pg.core import green

green.patch()

import gc  # noqa: E402
import os  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import flask_socketio  # noqa: E402
import greenlet  # type: ignore[import-untyped]  # noqa: E402
from flask import Flask, request  # noqa: E402

from socketio_pg.core.logs import configure_logging  # noqa: E402
from socketio_pg.engine import polling  # noqa: E402
from socketio_pg.gateway import limits  # noqa: E402
from socketio_pg.websocket import SocketServer  # noqa: E402
from tests.support.all_workers import AllWorkers  # noqa: E402
from tests.support.clock import add_clock  # noqa: E402

configure_logging("INFO")
polling.BODY_TIMEOUT = float(os.environ.get("BODY_TIMEOUT", polling.BODY_TIMEOUT))
limits.FILTER_PENALTY = float(os.environ.get("FILTER_PENALTY", limits.FILTER_PENALTY))
app = Flask(__name__)
server = SocketServer(app, binary=os.environ.get("BINARY") == "1")
io = server.socketio
engine = io.server.eio
add_clock(app)
#: Calls of handlers that clients must never be able to trigger.
forged: list[str] = []


def sid() -> str:
    return str(request.sid)  # type: ignore[attr-defined]


def connect(auth: Any) -> None:
    try:
        flask_socketio.emit("auth", auth)
    except (ValueError, RecursionError):
        raise ConnectionRefusedError from None  # a lone surrogate, for instance


def connect_carelessly(auth: Any) -> None:
    flask_socketio.emit("auth", auth)


io.on_event("connect", connect_carelessly, namespace="/careless")
io.on_event("connect", lambda: None, namespace="/slow")
io.on_event("disconnect", lambda *_: green.sleep(0.3), namespace="/slow")


for namespace in ("/", "/custom"):
    io.on_event("connect", connect, namespace=namespace)
    io.on_event("message", lambda *data: flask_socketio.emit("message-back", data), namespace=namespace)
    io.on_event("message-with-ack", lambda *data: data, namespace=namespace)
    io.on_event("leave", lambda: flask_socketio.disconnect(), namespace=namespace)


@io.on("connect_error")
@io.on("disconnecting")
@io.on("newListener")
def never(*_: object) -> None:
    forged.append("a reserved event")


@io.on("*")
def anything(event: str, *data: Any) -> list[Any]:
    if event == "*":
        forged.append(event)
    return [event, sid(), *data]


@io.on("raise")
def fail() -> None:
    raise ValueError("s3cret")


@io.on("call me")
def call_me(question: Any) -> Any:
    return io.call("question", question, to=sid(), timeout=60)


def own_state(_: None) -> dict[str, Any]:
    stock = io.server
    gc.collect()
    status = Path("/proc/self/status").read_text("utf-8")
    return {
        "forged": list(forged),
        "green": sum(isinstance(found, greenlet.greenlet) and not found.dead for found in gc.get_objects()),
        "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "sockets": len(engine.sockets),
        "pinged": len(engine._to_ping),
        "not connected": len(engine.pending),
        # Bytes of incomplete messages.
        "unread": sum(one.connection._reader.held for one in engine.sockets.values() if one.connection is not None),
        "requests": len(stock.environ),
        "namespaces": len(stock.manager.rooms),
        "rooms": sum(map(len, stock.manager.rooms.values())),
        "pending": len(stock.manager.pending_connect) + len(stock.manager.pending_disconnect),
        "callbacks": len(stock.manager.callbacks),
        "attachments": len(stock._binary_packet),
        "connections": len(stock._connections),
        "early": len(stock.manager._early),
        "sessions": len(server.access.sessions),
        "limited": len(server.limits._clients),
        "subscribers": len(server.pubsub.hub),
        "channels": len(server.pubsub.hub.channels()),
        "kilobytes": int(status.split("VmRSS:")[1].split()[0]),
    }


states = AllWorkers(app, "state", own_state)


@app.get("/state")
def state() -> dict[str, Any]:
    first, *others = states.call()
    for other in others:
        for name, value in other.items():
            first[name] += value
    return dict(first)


owners = AllWorkers(app, "owner", lambda sid: os.getpid() if sid in engine.sockets else None)


@app.get("/owner")
def owner() -> dict[str, Any]:
    """Return the process ids of the workers that have the session ``sid``, and that of the one that answers."""
    return {"owners": [pid for pid in owners.call(request.args.get("sid")) if pid], "answers": os.getpid()}


if os.environ.get("ECHO"):

    def echo(sid: str, message: str | bytes, own_thread: bool) -> None:
        engine.send(sid, message)

    engine.handle_message = echo
    engine.is_connected = lambda sid: True


class Stall:
    """The longest time since the last reset during which other green threads could not run.

    In CPU seconds of this process, so that other processes do not count.
    """

    longest = 0.0

    def watch(self) -> None:
        while True:
            before = time.process_time()
            green.sleep(0.001)
            self.longest = max(self.longest, time.process_time() - before)


stall = Stall()


def own_longest_stall(_: None) -> float:
    if not app.extensions.get("watching"):
        app.extensions["watching"] = green.spawn(stall.watch)
    longest, stall.longest = stall.longest, 0.0
    return longest


stalls = AllWorkers(app, "stall", own_longest_stall)


@app.get("/stall")
def longest_stall() -> dict[str, float]:
    """Return the longest stall since the last request, and reset it."""
    return {"seconds": max(stalls.call())}


# /state searches only objects created from now on, not the tens of thousands that the imports created.
gc.collect()
gc.freeze()
