"""Features specific to the Python Subscriber: threads, publishing, exceptions. See also test_replay_clients.py."""

import contextlib
import logging
import math
import queue
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from socketio_pg.core.errors import (
    DatabaseUnavailableError,
    InvalidChannelError,
    InvalidRequestError,
    PayloadTooLargeError,
    SocketIOPGError,
)
from socketio_pg.core.publications import Published
from socketio_pg.subscriber.subscriber import Gap, Message, Subscriber
from tests.support.log import Log, wait_installed
from tests.support.node import NodeClient
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.proxy import Proxy
from tests.support.server import ROOT, ServerProcess, free_port


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "live_subscriber", AUTO_INIT="1", PING_INTERVAL="1", PING_TIMEOUT="20")
    wait_installed(made)
    yield made
    made.server.close()


@pytest.fixture
def subscriber(log: Log) -> Iterator[Subscriber]:
    with Subscriber(log.server.url, reconnection_delay=0.1, reconnection_delay_max=0.5) as made:
        yield made


def test_import_needs_neither_flask_nor_eventlet_nor_the_driver() -> None:
    names = ["flask", "flask_socketio", "eventlet", "psycopg2", "sqlalchemy", "gunicorn"]
    program = f"import sys, socketio_pg.subscriber; sys.exit(str([n for n in {names} if n in sys.modules] or ''))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_published_messages_arrive_in_both_tiers(log: Log, subscriber: Subscriber, channel: str) -> None:
    received: queue.Queue[Message] = queue.Queue()
    subscriber.subscribe(channel, received.put)
    assert subscriber.publish(channel, {"text": "ünïcödé 🐘"}, durable=False).position is None
    first = received.get(timeout=PATIENCE)
    assert first == {"channel": channel, "payload": {"text": "ünïcödé 🐘"}}
    published = subscriber.publish(channel, None, durable=True)
    second = received.get(timeout=PATIENCE)
    assert (second["payload"], second["position"], second["epoch"]) == (None, published.position, published.epoch)
    assert published.position is not None
    subscriber.publish(channel, 3, id="three")  # uses the log where it is installed
    third = received.get(timeout=PATIENCE)
    again = subscriber.publish(channel, 4, id="three")
    assert (again.duplicate, again.position) == (True, third["position"])
    assert not subscriber.publish(channel, 5, id="five", wait=False).waited
    assert received.get(timeout=PATIENCE)["payload"] == 5


def test_payload_of_the_log_is_json_whatever_its_numbers_are(log: Log, channel: str) -> None:
    """Python reads integers exactly. JavaScript reads numbers as doubles."""
    received: queue.Queue[Any] = queue.Queue()
    javascript = NodeClient(log.server.url, "websocket")
    try:
        with Subscriber(log.server.url, parse_float=Decimal) as subscriber:
            subscriber.subscribe(channel, received.put, filter={"new.n": {"gt": 1}})
            javascript.next(event="connect")
            javascript.call("subscribe", {"channel": channel})
            for text in ("9" * 150, "7" * 400, "3" * 5_000, "5" * 400 + ".25", "12345678901234567890.50"):
                log.sql("SELECT socketio_pg.publish(%s, %s::jsonb)", channel, f'{{"new": {{"n": {text}}}}}')
                payload = received.get(timeout=PATIENCE)["payload"]
                assert payload == {"new": {"n": Decimal(text)}}
                seen = javascript.next(event="event")["argument"]["payload"]["new"]["n"]
                # JSON.stringify(Infinity) is null.
                assert (math.inf if seen is None else float(seen)) == float(text)
    finally:
        javascript.close()


def test_message_that_cannot_be_decoded_is_a_gap(log: Log, subscriber: Subscriber, channel: str) -> None:
    received: queue.Queue[Any] = queue.Queue()
    subscription = subscriber.subscribe(channel, received.put, on_gap=received.put)
    log.publish(channel, 1, 1)
    first = received.get(timeout=PATIENCE)
    log.sql("SELECT socketio_pg.publish(%s, (repeat('[', 2000) || repeat(']', 2000))::jsonb)", channel)
    log.publish(channel, 2, 2)
    gap, second = received.get(timeout=PATIENCE), received.get(timeout=PATIENCE)
    place = {"epoch": first["epoch"], "position": first["position"] + 1}
    assert gap == {"channel": channel, "tier": "log", "reason": "undecodable", **place}
    assert (second["payload"], subscription.position) == ([2, ""], {**place, "position": place["position"] + 1})


def test_several_threads_may_publish(subscriber: Subscriber, channel: str) -> None:
    received: queue.Queue[Message] = queue.Queue()
    subscriber.subscribe(channel, received.put)

    def publish(number: int) -> None:
        for _ in range(50):
            subscriber.publish(channel, number, durable=number % 2 == 0)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    found = sorted(received.get(timeout=PATIENCE)["payload"] for _ in range(200))
    assert found == [0] * 50 + [1] * 50 + [2] * 50 + [3] * 50
    for thread in threads:
        thread.join()


def test_server_errors_raise_their_classes(log: Log, subscriber: Subscriber, channel: str) -> None:
    attempts: list[tuple[type[SocketIOPGError], str, Any]] = [
        (InvalidChannelError, "*", 1),
        (InvalidRequestError, channel, float("nan")),
        (InvalidRequestError, channel, b"bytes"),
        (PayloadTooLargeError, channel, "x" * 8000),
    ]
    for raised, name, payload in attempts:
        with pytest.raises(SocketIOPGError) as caught:
            subscriber.publish(name, payload, durable=False)
        assert type(caught.value) is raised
    with pytest.raises(InvalidRequestError, match="history"):
        subscriber.subscribe(channel, print, history=-1)
    with pytest.raises(InvalidRequestError, match="since"):
        subscriber.subscribe(channel, print, since={"position": 5})  # type: ignore[arg-type]
    with pytest.raises(InvalidChannelError):
        subscriber.subscribe("socketio_pg_x", print)


def test_durable_publishing_requires_a_log(live_server: ServerProcess, channel: str) -> None:
    with Subscriber(live_server.url) as subscriber:
        with pytest.raises(InvalidRequestError, match="not installed"):
            subscriber.publish(channel, 1, durable=True)
        assert subscriber.subscribe(channel, print).position is None


def test_handler_may_call_every_method(log: Log, subscriber: Subscriber, channel: str) -> None:
    received: queue.Queue[Any] = queue.Queue()
    done = threading.Event()

    def handle(message: Message) -> None:
        inner = subscriber.subscribe(f"{channel}-2", received.put)
        subscriber.publish(f"{channel}-2", message["payload"], durable=True)
        subscriber.publish(f"{channel}-3", "for nobody", durable=False)
        received.put(inner.position)
        subscriber.subscribe(f"{channel}-3", received.put, history=1)
        subscriber.unsubscribe(subscription)
        done.set()

    ready = threading.Event()

    def wait(message: Message) -> None:
        ready.wait(PATIENCE)
        handle(message)

    subscription = subscriber.subscribe(channel, wait)
    subscriber.publish(channel, 1)
    subscriber.publish(channel, 2)
    ready.set()
    assert done.wait(PATIENCE)
    assert received.get(timeout=PATIENCE)["epoch"]
    assert received.get(timeout=PATIENCE)["payload"] == 1
    assert received.empty(), "the handler of an ended subscription was called"


def test_exception_of_a_handler_is_logged_and_affects_no_other(
    subscriber: Subscriber, channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    received: queue.Queue[Message] = queue.Queue()

    def fail(message: Message) -> None:
        raise ValueError("of the application")

    subscriber.subscribe(channel, fail)
    subscriber.subscribe(channel, received.put)
    subscriber.publish(channel, 1)
    subscriber.publish(channel, 2)
    assert [received.get(timeout=PATIENCE)["payload"] for _ in range(2)] == [1, 2]
    assert caplog.text.count("ValueError: of the application") == 2


def test_slow_handler_is_bounded_in_memory_and_loses_no_log_messages(log: Log, channel: str) -> None:
    """Meanwhile the subscriber answers pings and handles other requests."""
    total = 3000
    numbers: queue.Queue[int] = queue.Queue()
    gaps: queue.Queue[Gap] = queue.Queue()
    may_continue = threading.Event()

    def handle(message: Message) -> None:
        assert may_continue.wait(3 * PATIENCE)
        numbers.put(message["payload"][0])

    with Subscriber(log.server.url, most_waiting=500_000) as subscriber:
        connection = subscriber._link.connection
        assert connection is not None
        subscriber.subscribe(channel, handle, on_gap=gaps.put)
        with logged("is interrupted") as interrupted:
            log.publish(channel, 1, total, pad=1000)
            assert interrupted.wait(PATIENCE)
        log.settle()
        other = subscriber.subscribe(f"{channel}-other", print)
        subscriber.unsubscribe(other)
        # The only remaining traffic is pings, and the server sends another only after a pong.
        for _ in range(4):
            heard = connection.heard
            while subscriber._link.connection is connection and connection.heard == heard:
                subscriber.wait(0.05)
        assert subscriber._link.connection is connection, "it was lost"
        assert subscriber._link.deliveries.cost < 2_000_000
        may_continue.set()
        assert [numbers.get(timeout=PATIENCE) for _ in range(total)] == list(range(1, total + 1))
        gap = gaps.get(timeout=PATIENCE)
        assert (gap["tier"], gap["reason"]) == ("notify", "slow_handler")
        assert subscriber._link.connection is connection, "it was lost"


def test_position_is_that_of_the_last_handled_message(log: Log, channel: str) -> None:
    positions: queue.Queue[Any] = queue.Queue()
    go = threading.Semaphore(0)

    def handle(message: Message) -> None:
        positions.put((message, subscription.position))
        go.acquire(timeout=PATIENCE)

    with Subscriber(log.server.url) as subscriber:
        subscription = subscriber.subscribe(channel, handle)
        log.publish(channel, 1, 3)
        log.settle()
        message, position = positions.get(timeout=PATIENCE)
        assert message["payload"][0] == 1
        assert position == {"epoch": message["epoch"], "position": message["position"]} == subscription.position
        go.release(3)
    assert subscription.position is not None
    # Messages received but not handled are delivered again from that position.
    with Subscriber(log.server.url) as subscriber:
        received: queue.Queue[Message] = queue.Queue()
        subscriber.subscribe(channel, received.put, since=position)
        assert [received.get(timeout=PATIENCE)["payload"][0] for _ in range(2)] == [2, 3]


def test_unreachable_server_raises_connection_error(channel: str) -> None:
    port = free_port()
    with pytest.raises(ConnectionError, match=f"127.0.0.1:{port}"):
        Subscriber(f"http://127.0.0.1:{port}")
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ConnectionError):
        Subscriber(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2)
    with Subscriber(f"http://127.0.0.1:{port}", retry=True, timeout=0.2) as subscriber:
        with pytest.raises(ConnectionError):
            subscriber.subscribe(channel, print)
        with pytest.raises(ConnectionError):
            subscriber.publish(channel, 1)
        assert subscriber._link.channels == {}


def test_server_may_start_later(newest_pg: Cluster, channel: str) -> None:
    server = ServerProcess(newest_pg.url(), DRAIN_SECONDS="0.2")
    server.stop()
    received: queue.Queue[Message] = queue.Queue()
    with contextlib.closing(server), Subscriber(server.url, retry=True, reconnection_delay=0.1) as subscriber:
        thread = threading.Thread(target=server.start)
        thread.start()
        subscriber.subscribe(channel, received.put)
        thread.join()
        subscriber.publish(channel, 1)
        assert received.get(timeout=PATIENCE)["payload"] == 1


def test_lost_connection_fails_pending_requests(newest_pg: Cluster, channel: str) -> None:
    database = Proxy(newest_pg.socket_path)
    with contextlib.closing(database):
        server = ServerProcess(database.url)
        with contextlib.closing(server), Subscriber(server.url, reconnection_delay=60) as subscriber:
            subscriber.publish(channel, 1)
            database.black_hole()
            failed: queue.Queue[Exception] = queue.Queue()

            def publish() -> None:
                try:
                    subscriber.publish(channel, 2)
                except Exception as error:
                    failed.put(error)

            thread = threading.Thread(target=publish)
            thread.start()
            with pytest.raises(DatabaseUnavailableError):
                subscriber.publish(channel, 3)
            assert isinstance(failed.get(timeout=PATIENCE), DatabaseUnavailableError)
            thread.join()
            thread = threading.Thread(target=publish)
            with subscriber._link.lock:  # so that the request is sent but not yet answered
                thread.start()
                server.kill()
            error = failed.get(timeout=PATIENCE)
            assert isinstance(error, ConnectionError), error
            thread.join()


def test_publication_without_an_answer_is_repeated_once(newest_pg: Cluster, channel: str) -> None:
    """The server is killed between the commit and the answer, which waits for the position that no relay can assign."""
    log = Log(newest_pg, "killed_publisher", AUTO_INIT="1")
    with contextlib.closing(log.server), Subscriber(log.server.url, timeout=PATIENCE) as subscriber:
        wait_installed(log)
        published: queue.Queue[Published] = queue.Queue()
        thread = threading.Thread(target=lambda: published.put(subscriber.publish(channel, 1)))
        with contextlib.closing(psycopg2.connect(log.url)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT FROM socketio_pg.head FOR UPDATE")
            thread.start()
            until(lambda: log.sql("SELECT 1 FROM socketio_pg.outbox WHERE channel = %s", channel), "it is committed")
            log.server.kill()
        log.server.start()
        result = published.get(timeout=PATIENCE)
        thread.join()
        assert result.durable
        assert not result.duplicate, "the message was new"
        log.settle()
        assert log.sql("SELECT payload FROM socketio_pg.log WHERE channel = %s", channel) == [(1,)]


def test_closed_subscriber_refuses_requests_and_stops_its_threads(log: Log, channel: str) -> None:
    with Subscriber(log.server.url) as subscriber:
        assert not subscriber.wait(0)
        closing = threading.Thread(target=subscriber.wait)
        closing.start()
        subscriber.subscribe(channel, lambda message: subscriber.close())
        log.publish(channel, 1, 1)
        closing.join(PATIENCE)
        assert not closing.is_alive()
    assert subscriber.wait(0)
    assert not subscriber.connected
    with pytest.raises(ConnectionError, match="closed"):
        subscriber.subscribe(channel, print)
    with pytest.raises(ConnectionError, match="closed"):
        subscriber.publish(channel, 1)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("socketio_pg-")]


DISCONNECTING_APP = """
from socketio_pg.core import green

green.patch()

from flask import Flask, request
from socketio_pg.websocket import SocketServer

app = Flask(__name__)
server = SocketServer(app)


@app.post("/disconnect-all")
def disconnect_all():
    for sid in [sid for sid, _ in server.socketio.server.manager.get_participants("/", None)]:
        server.socketio.server.disconnect(sid)
    return "done"
"""


def test_subscriber_reconnects_after_a_server_disconnect(newest_pg: Cluster, tmp_path: Path, channel: str) -> None:
    """python-socketio's client would not reconnect, and its thread would deadlock."""
    (tmp_path / "disconnecting.py").write_text(DISCONNECTING_APP)
    server = ServerProcess(newest_pg.url(), app="disconnecting:app", PYTHONPATH=f"{tmp_path}:{ROOT}")
    received: queue.Queue[Message] = queue.Queue()
    gaps: queue.Queue[Gap] = queue.Queue()
    with contextlib.closing(server), Subscriber(server.url, reconnection_delay=0.1) as subscriber:
        subscriber.subscribe(channel, received.put, on_gap=gaps.put)
        urllib.request.urlopen(f"{server.url}/disconnect-all", data=b"", timeout=PATIENCE).close()
        assert gaps.get(timeout=PATIENCE)["reason"] == "client_disconnected"
        subscriber.publish(channel, 1)
        assert received.get(timeout=PATIENCE)["payload"] == 1


def test_subscriber_works_over_long_polling(log: Log, channel: str) -> None:
    received: queue.Queue[Message] = queue.Queue()
    with Subscriber(log.server.url, transports=["polling"]) as subscriber:
        subscriber.subscribe(channel, received.put)
        log.publish(channel, 1, 500)
        assert [received.get(timeout=PATIENCE)["payload"][0] for _ in range(500)] == list(range(1, 501))


@contextlib.contextmanager
def logged(text: str) -> Iterator[threading.Event]:
    """Yield an event that is set when the subscriber logs ``text``."""
    found = threading.Event()

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if text in record.getMessage():
                found.set()

    watch = Watch()
    logger = logging.getLogger("socketio_pg.subscriber")
    logger.addHandler(watch)
    try:
        yield found
    finally:
        logger.removeHandler(watch)
