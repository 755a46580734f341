"""Replay over HTTP at a real server: pages of the log, and positions that cannot be recovered."""

import threading
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
import requests

from socketio_pg.log.log import DEFAULT_MESSAGES, MAX_MESSAGES, MAX_PAGE_CHARACTERS
from tests.support.clients import SocketClient
from tests.support.http_api import HttpApi, after, payloads, refusal
from tests.support.log import Log, since, wait_installed
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess

NO_LIMITS = {"MAX_EVENTS_PER_SECOND": "0", "MAX_EVENT_BYTES_PER_SECOND": "0"}
#: The largest request body: the largest payload and 64 KiB for the rest.
MAX_BYTES = 1_000_000 + 65_536


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "http_replay_log", AUTO_INIT="1", DURABLE_CHANNELS="always:*", **NO_LIMITS)
    wait_installed(made)
    yield made
    made.server.close()


def test_request_without_a_start_returns_the_current_position(api: HttpApi, log: Log, channel: str) -> None:
    log.publish(channel, 1, 3)
    log.settle()
    [(epoch, position)] = log.sql(
        "SELECT epoch::text, (SELECT max(position) FROM socketio_pg.log) FROM socketio_pg.head"
    )
    assert api.page(channel) == {
        "channel": channel, "messages": [], "more": False, "epoch": epoch, "position": position,
        "next": f"{epoch}:{position}",
    }  # fmt: skip


def test_messages_equal_those_of_subscribers(api: HttpApi, log: Log, subscriber: SocketClient, channel: str) -> None:
    start = api.page(channel)
    # The text of jsonb is passed on unchanged, with numbers of any size and precision.
    log.sql('SELECT socketio_pg.publish(%s, \'{"n": 123456789012345678901234567890.10, "t": "ä"}\')', channel)
    message = subscriber.next("event")
    answer = api.messages(channel, **after(start))
    assert '"payload":{"n": 123456789012345678901234567890.10, "t": "ä"}' in answer.text
    page = answer.json()
    assert page["messages"] == [message]
    assert (page["recovered"], page["more"]) == (True, False)
    assert page["position"] >= message["position"]


def test_pages_continue_where_the_previous_one_ended(api: HttpApi, log: Log, channel: str) -> None:
    start = api.page(channel)
    log.publish(channel, 1, 250)
    log.publish(f"{channel}-other", 1, 10)
    log.settle()
    page = api.page(channel, **after(start))
    assert [n for n, _ in payloads(page)] == list(range(1, DEFAULT_MESSAGES + 1))
    assert (page["more"], page["recovered"]) == (True, True)
    assert page["position"] == page["messages"][-1]["position"]
    page = api.page(channel, **after(page), limit=149)
    assert [n for n, _ in payloads(page)] == list(range(101, 250))
    assert page["more"] is True
    page = api.page(channel, **after(page), limit=1)
    # Its last message: later messages of other channels do not set `more`.
    assert [n for n, _ in payloads(page)] == [250]
    assert page["more"] is False
    assert page["position"] == page["messages"][-1]["position"] + 10
    assert payloads(api.page(channel, **after(page))) == []
    everything = api.page(channel, **after(start), limit=MAX_MESSAGES)
    assert [n for n, _ in payloads(everything)] == list(range(1, 251))


def test_history_returns_the_latest_messages(api: HttpApi, log: Log, channel: str) -> None:
    log.publish(channel, 1, 30)
    log.settle()
    assert [n for n, _ in payloads(api.page(channel, history=3))] == [28, 29, 30]
    assert [n for n, _ in payloads(api.page(channel, history=1000))] == list(range(1, 31))
    assert payloads(api.page(channel, history=0)) == []
    page = api.page(channel, history=20, limit=5)
    assert [n for n, _ in payloads(page)] == [11, 12, 13, 14, 15]
    assert page["more"] is True
    assert "recovered" not in page
    assert [n for n, _ in payloads(api.page(channel, **after(page)))] == list(range(16, 31))


def test_page_size_is_limited_in_bytes(api: HttpApi, log: Log, channel: str) -> None:
    start = api.page(channel)
    for number in range(1, 6):
        log.publish(channel, number, number, 600_000)
    log.settle()
    found, page, sizes = [], start, []
    while True:
        answer = api.messages(channel, **after(page), limit=1000)
        page = answer.json()
        sizes.append(len(answer.content))
        found += [n for n, _ in payloads(page)]
        if not page["more"]:
            break
    assert found == [1, 2, 3, 4, 5]
    assert len(sizes) == 3
    assert max(sizes) < MAX_PAGE_CHARACTERS + 700_000


@pytest.mark.parametrize("from_memory", [True, False])
def test_paging_loses_nothing_while_messages_are_published(
    api: HttpApi, log: Log, channel: str, from_memory: bool
) -> None:
    """Reads pages of varying size while messages are being published, up to the live ones."""
    start = api.page(channel)
    if not from_memory:
        log.publish(f"{channel}-other", 1, 60, 300_000)  # more than the server keeps in memory
        log.publish(channel, -50, -1)
        log.publish(f"{channel}-other", 1, 60, 300_000)
        log.settle()
    total = 60

    def publish() -> None:
        for number in range(1, total + 1):
            log.publish(channel, number, number, (number % 9 == 0) * 6000 + (number % 40 == 0) * 300_000)

    thread = threading.Thread(target=publish)
    thread.start()
    found: list[dict[str, Any]] = []
    page, turn = start, 0
    try:
        while not found or found[-1]["payload"][0] < total:
            turn += 1
            page = api.page(channel, **after(page), limit=1 + turn % 7)
            assert page["recovered"] is True
            found += page["messages"]
    finally:
        thread.join()
    expected = ([] if from_memory else list(range(-50, 0))) + list(range(1, total + 1))
    assert [message["payload"][0] for message in found] == expected
    # A socket can continue at a position from HTTP.
    with SocketClient(log.server.url) as client:
        client.call("subscribe", {"channel": channel, "since": since(page, found[10]["position"])})
        assert client.next("event")["payload"] == found[11]["payload"]


def test_unknown_start_is_not_recovered(api: HttpApi, log: Log, channel: str) -> None:
    log.publish(channel, 1, 3)
    log.settle()
    start = api.page(channel)
    where = {name: start[name] for name in ("epoch", "position", "next")}
    empty = {"channel": channel, "messages": [], "more": False, "recovered": False} | where
    other = "00000000-0000-0000-0000-000000000000"
    assert api.page(channel, since=1, epoch=other) == empty | {"reason": "epoch_changed"}
    assert api.page(channel, since=f"{other}:1") == empty | {"reason": "epoch_changed"}
    assert api.page(channel, since=2**62, epoch=start["epoch"]) == empty | {"reason": "position_unknown"}
    # The position in the answer is valid for the next request.
    log.publish(channel, 4, 4)
    log.settle()
    assert [n for n, _ in payloads(api.page(channel, **after(start)))] == [4]
    one_text = f"{start['epoch']}:{start['position']}"
    assert api.page(channel, since=one_text) == api.page(channel, **after(start))
    assert api.page(channel, since=one_text, epoch=start["epoch"]) == api.page(channel, **after(start))


def test_trimmed_messages_are_not_recovered(newest_pg: Cluster, channel: str) -> None:
    log = Log(newest_pg, "http_trimmed", AUTO_INIT="1")
    try:
        wait_installed(log)
        api = HttpApi(log.server)
        start = api.page(channel)
        log.publish(channel, 1, 10)
        log.settle()
        with psycopg2.connect(log.url) as connection, connection.cursor() as cursor:
            # Trims as the relay does. A server that has just started does not have the messages in memory.
            trimmed = start["position"] + 5
            cursor.execute("DELETE FROM socketio_pg.log WHERE position <= %s", (trimmed,))
            cursor.execute("UPDATE socketio_pg.head SET trimmed = %s", (trimmed,))
        connection.close()
        log.server.restart()
        page = api.page(channel, **after(start))
        assert (page["recovered"], page["reason"], page["messages"]) == (False, "trimmed", [])
        assert page["position"] == start["position"] + 10
        assert [n for n, _ in payloads(api.page(channel, history=1000))] == [6, 7, 8, 9, 10]
        whole = api.page(channel, since=trimmed, epoch=start["epoch"])
        assert [n for n, _ in payloads(whole)] == [6, 7, 8, 9, 10]
        assert whole["recovered"] is True
    finally:
        log.server.close()


def test_recreated_log_has_a_new_epoch(newest_pg: Cluster, channel: str) -> None:
    log = Log(newest_pg, "http_recreated", AUTO_INIT="1")
    try:
        wait_installed(log)
        api = HttpApi(log.server)
        log.publish(channel, 1, 3)
        log.settle()
        before = api.page(channel)
        log.sql("DROP SCHEMA socketio_pg CASCADE")
        log.server.restart()
        wait_installed(log)
        page = api.page(channel, **after(before))
        assert (page["recovered"], page["reason"]) == (False, "epoch_changed")
        assert (page["epoch"] == before["epoch"], page["position"]) == (False, 0)
    finally:
        log.server.close()


def test_requests_without_a_log_recover_nothing(live_server: ServerProcess, channel: str) -> None:
    api = HttpApi(live_server)
    nothing = {"channel": channel, "messages": [], "more": False}
    assert api.page(channel) == nothing
    assert api.page(channel, history=5) == nothing
    assert api.page(channel, since=5, epoch="x") == nothing | {"recovered": False, "reason": "not_installed"}
    assert refusal(api.publish(channel, 1, durable=True)) == (400, "log_not_installed")
    assert refusal(api.publish(channel, "x" * 8000)) == (413, "payload_too_large")
    with SocketClient(live_server.url) as client:
        client.call("subscribe", {"channel": channel})
        assert api.publish(channel, 1).status_code == 200
        assert client.next("event") == {"channel": channel, "payload": 1}


@pytest.mark.parametrize(
    "query",
    [
        {"since": 1}, {"epoch": "x"}, {"since": "x:1", "epoch": "y"}, {"since": ":1"}, {"since": "x:"},
        {"since": "x:-1"}, {"since": ["x:1", "x:1"]}, {"since": "x:1", "history": 1}, {"since": f"x:{2**63}"},
        {"since": "x", "epoch": "x"}, {"since": -1, "epoch": "x"},
        {"since": 2**63, "epoch": "x"}, {"since": "٣", "epoch": "x"}, {"since": [1, 2], "epoch": "x"},
        {"since": 1, "epoch": "x", "history": 1}, {"history": 1001}, {"history": ""}, {"history": "1.0"},
        {"limit": 0}, {"limit": 1001}, {"limit": "9" * 30},
    ],
)  # fmt: skip
def test_invalid_queries_are_refused(api: HttpApi, channel: str, query: dict[str, Any]) -> None:
    assert refusal(api.messages(channel, **query)) == (400, "invalid_request")


@pytest.mark.parametrize("name", ["a/b", "/a", "a//b", "ä€😀", "a b", "a?b#c", "%2F", "messages", "a/messages", "+&;="])
def test_every_channel_has_a_url(api: HttpApi, log: Log, name: str) -> None:
    start = api.page(name)
    assert start["channel"] == name
    log.publish(name, 1, 1)
    log.settle()
    assert [n for n, _ in payloads(api.page(name, **after(start)))] == [1]


@pytest.mark.parametrize("path", ["%20a", "a*", "socketio_pg", "a%00", "a%0Ab", "%ff", "", "a" * 64])
def test_invalid_channels_are_refused(api: HttpApi, path: str) -> None:
    answer = requests.get(f"{api.url}/api/channels/{path}/messages", timeout=PATIENCE)
    assert refusal(answer) == (400, "invalid_channel")


def test_page_is_never_before_the_requested_position(api: HttpApi, log: Log, channel: str) -> None:
    """Behind a load balancer, `since` may come from a node that is ahead of this one."""
    with SocketClient(log.server.url) as client:
        for number in range(20):
            client.call("subscribe", {"channel": channel})
            log.publish(channel, number, number)
            position = client.next("event")["position"]
            page = api.page(channel, since=position, epoch=api.page(channel)["epoch"])
            assert (page["messages"], page["recovered"]) == ([], True)
            assert page["position"] >= position
            client.call("unsubscribe", {"channel": channel})
