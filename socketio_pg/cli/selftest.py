"""The command ``bench``: sends messages to subscribers and measures the time. A self-test, not a benchmark."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import jwt

from socketio_pg.cli.command import FAILED, examples, json_option, open_database, token_option, url_option
from socketio_pg.cli.terminal import Progress, entry, print_json, say
from socketio_pg.core import loading
from socketio_pg.core.config import NAMES, Settings
from socketio_pg.core.errors import DatabaseUnavailableError, SocketIOPGError
from socketio_pg.core.variables import PREFIX
from socketio_pg.postgres.database import session
from socketio_pg.subscriber.subscriber import Message, Subscriber

#: Seconds for a server to start, and for the last deliveries after the last message is published.
PATIENCE = 30.0
#: Seconds between two reports of the progress.
REPORT = 0.2


@dataclass(frozen=True, slots=True)
class Result:
    """The measurement. Times are in seconds; ``delivered`` is less than ``expected`` if messages are missing."""

    subscribers: int
    messages: int
    delivered: int
    expected: int
    seconds: float
    p50: float
    p99: float


def measure(
    url: str,
    token: str | None,
    channel: str,
    subscribers: int,
    messages: int,
    report: Callable[[str], None] = lambda text: None,
) -> Result:
    """Publish ``messages`` one by one, each after the commit of the one before, to that many ``subscribers``.

    ``report(text)`` is called with the progress, at most every :data:`REPORT` seconds.

    Latency is the time from the call of publish to the subscriber's handler. Raises the errors of :class:`Subscriber`.
    """
    expected = subscribers * messages
    latencies: list[float] = []
    complete = threading.Event()

    def receive(message: Message) -> None:
        latencies.append(time.monotonic() - message["payload"]["at"])  # atomic
        if len(latencies) >= expected:
            complete.set()

    with contextlib.ExitStack() as stack:
        for number in range(subscribers):
            report(f"connecting subscriber {number + 1} of {subscribers} …")
            subscriber = stack.enter_context(Subscriber(url, token=token))
            subscriber.subscribe(channel, receive)
        publisher = stack.enter_context(Subscriber(url, token=token))
        began = reported = time.monotonic()
        for number in range(messages):
            # Not through the log, which may be that of an application: its messages would stay there.
            publisher.publish(channel, {"n": number, "at": time.monotonic()}, durable=False)
            if time.monotonic() >= reported + REPORT:
                reported = time.monotonic()
                report(f"published {number + 1} of {messages}, delivered {len(latencies)} of {expected} …")
        complete.wait(PATIENCE)
        seconds = time.monotonic() - began
    found = sorted(latencies)
    return Result(subscribers, messages, len(found), expected, seconds, percentile(found, 0.5), percentile(found, 0.99))


def percentile(ordered: list[float], share: float) -> float:
    """Return the value below which ``share`` (0 to 1) of the sorted values lie; 0 for an empty list."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


@contextlib.contextmanager
def local_server(settings: Settings, channel: str) -> Iterator[tuple[str, str]]:
    """Run a server on a free local port that allows only ``channel``; yield its address and a token.

    Raises :class:`DatabaseUnavailableError` when the server does not become ready.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    secret = secrets.token_hex(32)
    claims = {"sub": "bench", "exp": int(time.time()) + 3600, "subscribe": [channel], "publish": [channel]}
    command = [
        sys.executable, "-m", "gunicorn", "-c", "python:socketio_pg.gunicorn_config", "--bind", f"127.0.0.1:{port}",
        "socketio_pg.server:app",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="socketio-pg-bench-") as folder:
        # Starts in an empty folder, without local.cfg and gunicorn.conf.py.
        log, url = Path(folder) / "log", f"http://127.0.0.1:{port}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=folder, env=_environment(settings, secret), stdout=output, stderr=output
            )
        try:
            _wait_ready(process, url, log)
            yield url, jwt.encode(claims, secret, "HS256")
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _environment(settings: Settings, secret: str) -> dict[str, str]:
    """Return an environment without the settings of other servers, except those about the database and the log.

    These must match, because this server may become the relay and trim the log.
    """
    dropped = NAMES | {"GUNICORN_CMD_ARGS"}
    kept: dict[str, Any] = {
        name.upper(): getattr(settings, name)
        for name in (
            "database_url",
            "listen_database_url",
            "log_retention",
            "log_max_messages",
            "max_payload",
            "schema_owner",
        )
    }
    overrides = {
        "AUTH": "required", "JWT_SECRET": secret, "AUTHORIZATION": "claims", "DRAIN_SECONDS": "0",
        "MAX_EVENTS_PER_SECOND": "0", "LOG_LEVEL": "WARNING", "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }  # fmt: skip
    return (
        {name: value for name, value in os.environ.items() if name.removeprefix(PREFIX) not in dropped}
        | {name: str(value) for name, value in kept.items() if value is not None}
        | overrides
    )


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        problem = "no answer"
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except urllib.error.HTTPError as refused:
            with refused:
                problem = refused.read(1000).decode("utf-8", "replace").strip()
        except OSError:
            pass
        if process.poll() is not None:
            raise SocketIOPGError(f"the server exited: {log.read_text('utf-8', 'replace').strip()[-500:]}")
        if time.monotonic() > deadline:
            raise DatabaseUnavailableError(f"the server did not become ready: {problem}")
        time.sleep(0.1)  # another process can only be polled


@click.command(
    epilog=examples(
        "socketio-pg bench",
        "socketio-pg bench --subscribers 200 --messages 500",
        'socketio-pg bench --url https://example.com --token "$TOKEN"',
    )
)
@url_option
@token_option
@click.option("--channel", help="Use this channel instead of a random one, for a --token with limited permissions.")
@click.option(
    "--subscribers", type=click.IntRange(1, 1000), default=50, show_default=True, help="Number of subscribers."
)
@click.option("--messages", type=click.IntRange(1, 100_000), default=200, show_default=True, help="Number of messages.")
@json_option
def bench(
    url: str | None, token: str | None, channel: str | None, subscribers: int, messages: int, as_json: bool
) -> None:
    """Run a quick self-test.

    Sends messages through server and database to a number of subscribers, and reports whether all arrive and how
    fast. Not a benchmark: the clients run in this process and take most of the time. Without --url the command starts
    its own server on a free port, with the configured database, and stops it afterwards.
    """
    channel = channel or f"bench:{secrets.token_hex(8)}"
    with contextlib.ExitStack() as stack:
        if url is None:
            settings = loading.load()
            with session(open_database(settings), "cli bench"):
                pass  # reports connection errors immediately
            say("starting a server …", error=True)
            url, token = stack.enter_context(local_server(settings, channel))
        progress = stack.enter_context(Progress())
        result = measure(url, token, channel, subscribers, messages, progress.show)
    if as_json:
        print_json(result)
    else:
        say("A self-test, not a benchmark: the clients run in this process.")
        entry(
            "delivered", f"{result.delivered} of {result.expected} ({messages} messages to {subscribers} subscribers)"
        )
        entry("latency", f"p50 {result.p50 * 1000:.1f} ms, p99 {result.p99 * 1000:.1f} ms")
        entry("published", f"{messages / result.seconds:.0f} messages/s, each after the commit of the one before")
        entry("deliveries", f"{result.delivered / result.seconds:.0f}/s")
    if result.delivered != result.expected:
        raise click.exceptions.Exit(FAILED)
