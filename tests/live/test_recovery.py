"""Connection state recovery with the stock JavaScript client: docs/recovery.md."""

from collections.abc import Iterator

import pytest

from tests.support.log import Log, wait_installed
from tests.support.postgres import Cluster
from tests.support.recovery import RecoveringClient
from tests.support.server import ServerProcess


@pytest.fixture(scope="module")
def first(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "recovery", AUTO_INIT="1", DURABLE_CHANNELS="*")
    try:
        wait_installed(made)
        yield made
    finally:
        made.server.close()


def test_a_short_cut_is_recovered(first: Log, channel: str) -> None:
    client = RecoveringClient(first.server.url)
    try:
        assert client.hello["recovery"] == {"recovered": False}
        client.subscribe(channel)
        first.publish(channel, 1, 3)
        assert client.numbers(3) == [1, 2, 3]
        client.send({"desert": True})
        first.publish(channel, 4, 6)
        hello = client.connected()
        assert hello["recovered"] is True
        assert hello["sid"] == client.hello["sid"]
        assert hello["pid"] == client.hello["pid"]
        assert client.numbers(3) == [4, 5, 6]
        first.publish(channel, 7, 7)
        assert client.numbers(1) == [7]
    finally:
        client.close()


@pytest.fixture
def second(first: Log) -> Iterator[ServerProcess]:
    """Another node."""
    made = ServerProcess(first.url, DURABLE_CHANNELS="*", DRAIN_SECONDS="0.2")
    try:
        yield made
    finally:
        made.close()


def test_a_client_that_comes_back_in_a_loop_misses_nothing(first: Log, second: ServerProcess, channel: str) -> None:
    """50 times, as fast as it can, between two nodes, with two channels: nothing is missed, nothing comes twice."""
    client = RecoveringClient(first.server.url)
    other = f"{channel} too"
    try:
        client.subscribe(channel)
        client.subscribe(other)
        for number in range(50):
            if number % 2:
                client.send({"desert": True, "url": (second.url, first.server.url)[number // 2 % 2]})
            else:
                client.cut((second.url, first.server.url)[number // 2 % 2])
            first.publish((channel, other)[number % 2], 10 * number, 10 * number + 9)
            hello = client.connected()
            assert hello["recovered"], (number, hello)
            assert hello["sid"] == client.hello["sid"]
        assert client.numbers(500) == list(range(500))
        assert not [line for line in client.lines if line["event"] == "event"]
    finally:
        client.close()


def test_a_session_survives_kill_of_its_node(first: Log, second: ServerProcess, channel: str) -> None:
    client = RecoveringClient(second.url)
    try:
        client.subscribe(channel, filter={"0": {"gte": 3}})
        first.publish(channel, 1, 4)
        assert client.numbers(2) == [3, 4]
        client.send({"url": first.server.url})
        second.kill()
        first.publish(channel, 1, 6)
        hello = client.connected()
        assert hello["recovered"], hello
        assert client.numbers(4) == [3, 4, 5, 6]
        first.publish(channel, 1, 7)
        assert client.numbers(5) == [3, 4, 5, 6, 7]
    finally:
        client.close()


def test_sessions_survive_a_restart_of_all_nodes(first: Log, channel: str) -> None:
    client = RecoveringClient(first.server.url)
    quiet = RecoveringClient(first.server.url)
    try:
        client.subscribe(channel)
        quiet.subscribe(channel)
        first.publish(channel, 1, 1)
        assert client.numbers(1) + quiet.numbers(1) == [1, 1]
        first.server.stop()
        first.publish(channel, 2, 3)
        first.server.start()
        for one in (client, quiet):
            hello = one.connected()
            assert hello["recovered"], hello
            assert one.numbers(2) == [2, 3]
    finally:
        client.close()
        quiet.close()


def test_a_kicked_client_gets_a_new_session(first: Log, second: ServerProcess, channel: str) -> None:
    client = RecoveringClient(first.server.url)
    try:
        client.subscribe(channel)
        client.send({"disconnect": True})
        client.next(event="disconnect")
        client.send({"url": second.url, "connect": True})
        hello = client.connected()
        assert hello["recovery"] == {"recovered": False, "reason": "unknown_session"}
        assert hello["sid"] != client.hello["sid"]
        # The client still sends the offset of the former session with the new pid.
        client.subscribe(channel)
        client.cut()
        assert client.connected()["recovered"]
    finally:
        client.close()


def test_unknown_and_foreign_pids_begin_a_new_session(first: Log) -> None:
    for pid in ("", "x", "1.2", "a" * 2000, 5, None, {"pid": "x"}):
        client = RecoveringClient(first.server.url, auth={"pid": pid})
        try:
            expected = {"recovered": False} | ({} if pid is None else {"reason": "invalid_pid"})
            assert client.hello["recovery"] == expected
        finally:
            client.close()
