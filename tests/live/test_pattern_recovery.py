"""Clients with patterns that lose their connection or their node, or read too slowly: each message arrives once."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.clients import SocketClient
from tests.support.log import Log, since, wait_installed
from tests.support.patience import until
from tests.support.postgres import Cluster
from tests.support.recovery import RecoveringClient
from tests.support.server import ServerProcess
from tests.support.small_buffers import OPTIONS
from tests.support.swarm import RawClient, Swarm


@pytest.fixture(scope="module")
def first(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "pattern_recovery", *OPTIONS, AUTO_INIT="1", SEND_BUFFER_BYTES="100000")
    try:
        wait_installed(made)
        yield made
    finally:
        made.server.close()


@pytest.fixture
def second(first: Log) -> Iterator[ServerProcess]:
    with contextlib.closing(ServerProcess(first.url, DRAIN_SECONDS="0.2")) as made:
        made.wait_ready()
        yield made


def channel_of(channel: str, number: int) -> str:
    return f"{channel}:{number % 3}" + (":x" if number % 5 == 0 else "")


def names_of(channel: str, number: int) -> list[str]:
    """Return the subscriptions of :func:`request` that get a message."""
    own = [f"{channel}:1"] if channel_of(channel, number) == f"{channel}:1" else []
    filtered = [f"{channel}:*:x"] if number % 5 == 0 and number >= 100 else []
    return [*own, f"{channel}:*", *filtered]


def request(channel: str) -> dict[str, Any]:
    some = {"pattern": f"{channel}:*:x", "filter": {"0": {"gte": 100}}}
    return {"channels": [{"pattern": f"{channel}:*"}, f"{channel}:1", some, f"{channel}:other"]}


@contextlib.contextmanager
def publishing(log: Log, channel: str, count: int, pad: int = 0) -> Iterator[None]:
    """Publish ``[n, "xxx"]`` in a thread, one transaction after the other, while the body runs."""

    def publish() -> None:
        for number in range(count):
            log.publish(channel_of(channel, number), number, number, pad)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def check(channel: str, count: int, take: Callable[[], dict[str, Any]]) -> None:
    """Take ``count`` events, and compare their numbers, order, and subscriptions."""
    for number in range(count):
        event = take()
        assert (event["payload"][0], event["channel"]) == (number, channel_of(channel, number))
        assert event.get("matches", [event.get("pattern")]) == names_of(channel, number), event


def test_each_message_once_through_cuts_and_kill(first: Log, second: ServerProcess, channel: str) -> None:
    """The stock JavaScript client with connection state recovery on two nodes, one of which is killed."""
    with contextlib.closing(RecoveringClient(second.url)) as client:
        answer = client.call("subscribe", request(channel))
        assert [one["ok"] for one in answer["channels"]] == [True] * 4, answer
        with publishing(first, channel, 200):
            for url in (first.server.url, second.url):
                client.cut(url)
                hello = client.connected()
                assert hello["recovered"], hello
            client.send({"url": first.server.url})
            second.kill()
            hello = client.connected()
            assert hello["recovered"], hello
        check(channel, 200, lambda: client.next(event="event")["argument"])
        first.publish(f"{channel}:other", 1, 1)
        assert client.next(event="event")["argument"]["channel"] == f"{channel}:other"
        assert client.call("unsubscribe", {"pattern": f"{channel}:*"})["ok"]
        first.publish(f"{channel}:1", 2, 2)
        last = client.next(event="event")["argument"]
        assert (last["payload"][0], "matches" in last, "pattern" in last) == (2, False, False)
        assert not [line for line in client.lines if line["event"] == "event"]


def test_a_client_goes_on_where_it_was_on_another_node(first: Log, second: ServerProcess, channel: str) -> None:
    """A client without recovery: one `since` for the pattern, and live messages without a break or a repetition."""
    got: list[int] = []
    with SocketClient(first.server.url) as client:
        place = since(client.call("subscribe", {"pattern": f"{channel}:*"}))
        with publishing(first, channel, 120):
            for turn in range(4):
                with SocketClient((first.server.url, second.url)[turn % 2]) as returning:
                    assert returning.call("subscribe", {"pattern": f"{channel}:*", "since": place})["recovered"]
                    returning.call("subscribe", {"channel": f"{channel}:1"})
                    for _ in range(30):
                        event = returning.next("event")
                        got.append(event["payload"][0])
                        place = since(place, event["position"])
        assert [client.next("event")["payload"][0] for _ in range(120)] == list(range(120))
    assert got == list(range(120))


@pytest.mark.nightly
def test_each_message_once_while_connections_of_the_database_are_lost(
    first: Log, second: ServerProcess, channel: str
) -> None:
    """Live clients on two nodes, one of which has begun with a replay; no message of the log is lost or repeated."""
    with SocketClient(first.server.url) as live, SocketClient(second.url) as replaying:
        place = since(live.call("subscribe", {"channel": f"{channel}:other"}))
        for client in (live, replaying):
            assert all(one["ok"] for one in client.call("subscribe", request(channel))["channels"])
        ended = threading.Event()

        def terminate() -> None:
            while not ended.wait(0.3):
                first.sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name LIKE 'socketio_pg %' AND datname = current_database()"
                )

        terminating = threading.Thread(target=terminate)
        terminating.start()
        try:
            with publishing(first, channel, 300):
                again = {"pattern": f"{channel}:*", "since": place}
                until(lambda: replaying.call("subscribe", again)["ok"], "the database answers")
        finally:
            ended.set()
            terminating.join()
        check(channel, 300, lambda: live.next("event"))
        # The replay has sent all to the pattern again, beside those that had arrived before it began.
        got: dict[int, list[list[str]]] = {}
        first.publish(f"{channel}:other", 1, 1)  # waits for the replay, as the pattern matches it
        while (event := replaying.next("event"))["channel"] != f"{channel}:other":
            names = event.get("matches", [event.get("pattern", event["channel"])])
            got.setdefault(event["payload"][0], []).append(names)
        for number in range(300):
            found = got[number]
            wanted = names_of(channel, number)
            assert sorted({name for names in found for name in names}) == sorted(wanted), number
            for name in wanted:
                times = sum(name in names for names in found)
                assert 1 <= times <= (2 if name == f"{channel}:*" else 1), (number, found)


@pytest.mark.nightly
def test_slow_clients_get_each_message_once(first: Log, channel: str) -> None:
    """Megabytes for clients that stop reading: their overlapping subscriptions are replayed together."""
    with Swarm("127.0.0.1", first.server.port) as swarm:
        clients = swarm.connect(3, receive_buffer=4096)
        for client in clients:
            client.emit("subscribe", request(channel), 1)
        swarm.run_until(lambda: all(any(one.startswith("31[") for one in client.packets) for client in clients))
        for client in clients[:2]:
            swarm.pause(client)
        with publishing(first, channel, 300, pad=9_000):
            swarm.run_until(lambda: len(clients[2].events("event")) >= 100)
        swarm.resume(clients[0])
        first.publish(f"{channel}:other", 1, 1)
        swarm.run_until(lambda: all(_is_last(channel, client) for client in (clients[0], clients[2])))
        swarm.resume(clients[1])
        swarm.run_until(lambda: _is_last(channel, clients[1]))
        for number, client in enumerate(clients):
            events = client.events("event")
            assert any("replayed" in event for event in events) or number == 2
            check(channel, 300, iter(events).__next__)
            assert len(events) == 301


def _is_last(channel: str, client: RawClient) -> bool:
    assert not client.closed
    return any(event["channel"] == f"{channel}:other" for event in client.events("event")[-1:])
