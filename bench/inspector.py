"""`python bench/inspector.py`: the CPU time of the inspector: while nobody looks, and while somebody does.

Three servers run at the same time, each on a database of its own with the same clients and messages: without the
inspector, with it, and with somebody who looks at the figures and at a live tail. The differences of their CPU times,
in per cent of one core, are the cost. What else the machine does slows down all three.
"""

import argparse
import contextlib
import json
import os
import random
import selectors
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import psycopg2
import socketio

# `python bench/inspector.py` puts bench/ first on the path; make the package `bench` importable instead.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import database, machine  # noqa: E402
from bench.wire import client_frame  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "a token of the benchmark"
#: What each server has, and whether somebody looks.
VARIANTS = {
    "off": ({}, False),
    "on": ({"INSPECTOR_TOKEN": TOKEN}, False),
    "looked at": ({"INSPECTOR_TOKEN": TOKEN}, True),
}
_KEY = "dGhlIHNhbXBsZSBub25jZQ=="


class Server:
    """A server with its clients, whose sockets :meth:`drain` reads."""

    def __init__(self, url: str, settings: dict[str, str], clients: int, selector: selectors.BaseSelector) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        environment = os.environ | {"DATABASE_URL": url, "AUTO_INIT": "1", "PING_TIMEOUT": "600"} | settings
        command = [sys.executable, "-m", "gunicorn", "--worker-class", "eventlet", "-w", "1"]
        command += ["-b", f"127.0.0.1:{self.port}", "socketio_pg.server:app"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._wait_ready()
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        self.pid = int(children[0])
        for _ in range(clients):
            selector.register(self._subscribe(), selectors.EVENT_READ)

    def cpu(self) -> float:
        return machine.process_cpu(self.pid)

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5).read()
                return
            time.sleep(0.2)
        raise SystemExit("a server did not start")

    def _subscribe(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port))
        head = (
            f"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {_KEY}\r\n\r\n"
        )
        connection.sendall(head.encode())
        seen = b""
        while b'0{"sid"' not in seen:
            seen += connection.recv(4096)
        connection.sendall(client_frame(b"40") + client_frame(b'42["subscribe",{"channel":"bench"}]'))
        while b'"subscribed"' not in seen:
            seen += connection.recv(4096)
        connection.setblocking(False)
        return connection


def look(port: int) -> Any:
    """Look at the figures, each second, and at a tail."""
    client = socketio.Client()
    client.on("now", lambda body: None, namespace="/inspector")
    client.on("tail", lambda body: None, namespace="/inspector")
    client.connect(
        f"http://127.0.0.1:{port}", namespaces=["/inspector"], auth={"token": TOKEN}, transports=["websocket"]
    )
    client.call("now", {"on": True}, namespace="/inspector")
    client.call("tail", {"channel": "bench"}, namespace="/inspector")
    return client


def poll(port: int, paths: list[str], seconds: float, ended: threading.Event) -> None:
    """Read paths of the API, as the page does for its lists."""
    while not ended.wait(seconds):
        for path in paths:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/inspector/api/{path}")
            request.add_header("Authorization", f"Bearer {TOKEN}")
            with urllib.request.urlopen(request, timeout=30) as answer:
                answer.read()


def drain(selector: selectors.BaseSelector, ended: threading.Event) -> None:
    while not ended.is_set():
        for key, _ in selector.select(0.5):
            assert isinstance(key.fileobj, socket.socket)
            if key.fileobj.recv(1 << 16) == b"":
                selector.unregister(key.fileobj)


def publish(urls: list[str], rate: float, channels: int, ended: threading.Event) -> None:
    """Publish ``rate`` messages a second to each database, five in a transaction."""
    connections = [psycopg2.connect(url) for url in urls]
    text = json.dumps({"n": 1, "text": "x" * 80})
    due = time.monotonic()
    while not ended.wait(max(0.0, due - time.monotonic())):
        for connection in connections:
            with connection, connection.cursor() as cursor:
                for number in range(5):
                    # With several channels: one message for those who are subscribed, and four for nobody.
                    name = "bench" if channels == 1 or number == 0 else f"bench:{random.randrange(channels - 1)}"
                    cursor.execute("SELECT socketio_pg.publish(%s, %s)", (name, text))
        due += 5 / rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rate", type=float, default=50, help="messages a second; 0: none")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--channels", type=int, default=1, help="channels with messages")
    parser.add_argument("--poll", nargs="*", default=[], help="paths of the API, such as channels and clients")
    parser.add_argument("--each", type=float, default=2, help="seconds between two times that they are read")
    parser.add_argument("--reverse", action="store_true", help="start the servers in the other order")
    options = parser.parse_args()
    ended = threading.Event()
    selector = selectors.DefaultSelector()
    with database.running(machine.choose_cores()) as (url, _), contextlib.ExitStack() as stack:
        urls = []
        for number in range(len(VARIANTS)):
            name = f"inspector_{number}"
            connection = psycopg2.connect(url)
            connection.autocommit = True
            connection.cursor().execute(f"CREATE DATABASE {name}")
            connection.close()
            urls.append(url.replace("/postgres?", f"/{name}?", 1))
        servers: dict[str, Server] = {}
        variants = list(VARIANTS.items())[:: -1 if options.reverse else 1]
        for at, (name, (settings, _)) in zip(urls, variants, strict=True):
            servers[name] = Server(at, settings, options.clients, selector)
            stack.callback(servers[name].process.wait)
            stack.callback(servers[name].process.terminate)
        stack.callback(ended.set)
        threading.Thread(target=drain, args=(selector, ended), daemon=True).start()
        if options.rate:
            threading.Thread(target=publish, args=(urls, options.rate, options.channels, ended), daemon=True).start()
        for name, (_, looked) in VARIANTS.items():
            if looked:
                stack.callback(look(servers[name].port).disconnect)
                if options.poll:
                    arguments = (servers[name].port, options.poll, options.each, ended)
                    threading.Thread(target=poll, args=arguments, daemon=True).start()
        time.sleep(3)
        found: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for _ in range(options.repeats):
            before = {name: server.cpu() for name, server in servers.items()}
            began = time.monotonic()
            time.sleep(options.seconds)
            took = time.monotonic() - began
            for name, server in servers.items():
                found[name].append(100 * (server.cpu() - before[name]) / took)
    for name, values in found.items():
        more = statistics.median(one - other for one, other in zip(values, found["off"], strict=True))
        shown = ", ".join(f"{value:.2f}" for value in values)
        print(f"{name:>10}: {statistics.median(values):6.2f} % of a core ({shown}); against off: {more:+.2f}")


if __name__ == "__main__":
    main()
