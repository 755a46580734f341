"""Publish and replay over HTTP at a real server: what is asked for, what is answered, and what subscribers get."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
import requests

from socketio_pg.publications import MOST_TOGETHER
from socketio_pg.replay_page import ENOUGH_CHARACTERS, MOST_MESSAGES, USUAL_MESSAGES
from tests.support.clients import SocketClient
from tests.support.http_api import HttpApi, after, payloads, refusal
from tests.support.log import Log, since, wait_installed
from tests.support.postgres import Cluster
from tests.support.raw_http import Connection
from tests.support.server import ServerProcess

NO_LIMITS = {"MAX_EVENTS_PER_SECOND": "0", "MAX_EVENT_BYTES_PER_SECOND": "0"}
#: What the body of a request may have beside the largest payload.
MOST_BYTES = 1_000_000 + 65_536


@pytest.fixture(scope="module")
def log(postgres18: Cluster) -> Iterator[Log]:
    made = Log(postgres18, "http_log", AUTO_INIT="1", DURABLE_CHANNELS="always:*", **NO_LIMITS)
    wait_installed(made)
    yield made
    made.server.close()


@pytest.fixture
def api(log: Log) -> HttpApi:
    return HttpApi(log.server)


@pytest.fixture
def subscriber(log: Log, channel: str) -> Iterator[SocketClient]:
    """Subscribes to ``channel``."""
    with SocketClient(log.server.url) as client:
        assert client.call("subscribe", {"channel": channel})["ok"] is True
        yield client


# -- publishing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [{"a": [1, 2.5, None, True]}, "text", "", 0, None, [], 2**70, "ä€😀\u2028"])
@pytest.mark.parametrize("durable", [False, True])
def test_a_subscriber_gets_it(
    api: HttpApi, subscriber: SocketClient, channel: str, payload: Any, durable: bool
) -> None:
    answer = api.publish(channel, payload, durable=durable)
    assert (answer.status_code, answer.json()) == (200, {"channel": channel})
    message = subscriber.next("event")
    assert message["payload"] == payload
    assert ("position" in message) is durable


def test_the_tier_is_chosen_as_for_sockets(api: HttpApi, log: Log, subscriber: SocketClient, channel: str) -> None:
    for payload in ("small", "x" * 8000):
        assert api.publish(channel, payload).status_code == 200
    assert "position" not in subscriber.next("event")
    assert "position" in subscriber.next("event")
    assert refusal(api.publish(channel, "x" * 8000, durable=False)) == (413, "payload_too_large")
    always = f"always:{channel}"
    with SocketClient(log.server.url) as client:
        client.call("subscribe", {"channel": always})
        assert api.publish(always, 1).status_code == 200
        assert "position" in client.next("event")


def test_many_together(api: HttpApi, subscriber: SocketClient, channel: str) -> None:
    messages = [{"channel": channel, "payload": number, "durable": True} for number in range(MOST_TOGETHER)]
    answer = api.publish_together(*messages)
    assert (answer.status_code, answer.json()) == (200, {"published": MOST_TOGETHER})
    assert [subscriber.next("event")["payload"] for _ in messages] == list(range(MOST_TOGETHER))
    # Without the log too, and mixed.
    mixed = [{"channel": channel, "payload": n, "durable": n % 2 == 0} for n in range(10)]
    assert api.publish_together(*mixed).status_code == 200
    found = [subscriber.next("event") for _ in mixed]
    assert [message["payload"] for message in found if "position" in message] == [0, 2, 4, 6, 8]
    assert [message["payload"] for message in found if "position" not in message] == [1, 3, 5, 7, 9]


def test_together_means_in_one_transaction(api: HttpApi, log: Log, channel: str) -> None:
    before = api.page(channel)
    answer = api.publish_together(*({"channel": channel, "payload": n, "durable": True} for n in range(20)))
    assert answer.status_code == 200
    log.settle()
    page = api.page(channel, **after(before))
    [(transactions,)] = log.sql("SELECT count(DISTINCT xmin::text) FROM socketio_pg.log WHERE channel = %s", channel)
    assert payloads(page) == list(range(20))
    # The relay moves what one transaction wrote at once.
    assert transactions == 1


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ({"channel": "*", "payload": 1}, "invalid_channel"),
        ({"channel": "a"}, "invalid_request"),
        ({"channel": "a", "payload": 1, "durable": "yes"}, "invalid_request"),
        ({"channel": "a", "payload": "x" * 8000, "durable": False}, "payload_too_large"),
        ("text", "invalid_request"),
        ([], "invalid_request"),
    ],
)
def test_all_or_nothing(api: HttpApi, subscriber: SocketClient, channel: str, bad: Any, code: str) -> None:
    good = [{"channel": channel, "payload": n, "durable": n > 2} for n in range(6)]
    answer = api.publish_together(*good, bad)
    assert refusal(answer)[1] == code
    assert answer.json()["error"]["message"].startswith("messages[6]: ")
    nothing_came(api, subscriber, channel)


def test_all_or_nothing_when_only_postgresql_finds_out(api: HttpApi, subscriber: SocketClient, channel: str) -> None:
    good = [{"channel": channel, "payload": n, "durable": n > 2} for n in range(6)]
    answer = api.publish_together(*good, {"channel": channel, "payload": "\0", "durable": True})
    assert refusal(answer) == (400, "invalid_request")
    nothing_came(api, subscriber, channel)


def nothing_came(api: HttpApi, subscriber: SocketClient, channel: str) -> None:
    """The next message is the first, in both tiers."""
    for durable in (True, False):
        assert api.publish(channel, "next", durable=durable).status_code == 200
        message = subscriber.next("event")
        assert (message["payload"], "position" in message) == ("next", durable)


def test_equal_messages_together(api: HttpApi, subscriber: SocketClient, channel: str) -> None:
    """PostgreSQL would fold them into one without a word."""
    twice = [{"channel": channel, "payload": {"same": 1}}] * 2
    answer = api.publish_together(*twice)
    assert refusal(answer) == (400, "invalid_request")
    assert answer.json()["error"]["message"].startswith("messages[1]: the same message")
    assert api.publish_together(*({**message, "durable": True} for message in twice)).status_code == 200
    assert [subscriber.next("event")["payload"] for _ in twice] == [{"same": 1}] * 2
    # One after the other is something else.
    assert [api.post(message).status_code for message in twice] == [200, 200]
    assert ["position" in subscriber.next("event") for _ in twice] == [False, False]


def test_many_at_once(log: Log, subscriber: SocketClient, channel: str) -> None:
    """Those of different requests go into one commit; equal ones, and batches, do not get mixed up."""
    answers: list[int] = []

    def publish(number: int) -> None:
        api = HttpApi(log.server)
        for n in range(5):
            answers.append(api.publish(channel, "equal").status_code)
            batch = ({"channel": channel, "payload": [number, n, k]} for k in range(10))
            answers.append(api.publish_together(*batch).status_code)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 100
    found = [subscriber.next("event")["payload"] for _ in range(50 + 500)]
    assert found.count("equal") == 50
    batches = [payload for payload in found if payload != "equal"]
    assert sorted(batches) == [[number, n, k] for number in range(10) for n in range(5) for k in range(10)]
    for number in range(10):
        of_one = [payload for payload in batches if payload[0] == number]
        assert of_one == sorted(of_one)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_request"),
        (b"{", "invalid_request"),
        (b"[]", "invalid_request"),
        (b'"text"', "invalid_request"),
        (b"null", "invalid_request"),
        (b"{}", "invalid_channel"),
        (b'{"channel": "a"}', "invalid_request"),
        (b'{"payload": 1}', "invalid_channel"),
        (b'{"channel": "a", "payload": 1, "durable": 1}', "invalid_request"),
        (b'{"channel": "socketio_pg_x", "payload": 1}', "invalid_channel"),
        (b'{"channel": "a", "payload": NaN}', "invalid_request"),
        (b'{"channel": "a", "payload": 1e999}', "invalid_request"),
        (b'{"channel": "a", "payload": "\\ud800"}', "invalid_request"),
        (b'{"channel": "\\ud800", "payload": 1}', "invalid_channel"),
        (b'{"channel": "a", "payload": "\xff"}', "invalid_request"),
        (b'\xef\xbb\xbf{"channel": "a", "payload": 1}', "invalid_request"),
        (b'{"channel": "a", "payload": ' + b"[" * 5000 + b"]" * 5000 + b"}", "invalid_request"),
        (b'{"channel": "a", "payload": [' + b"[]," * 110_000 + b"1]}", "invalid_request"),
        (b'{"messages": []}', "invalid_request"),
        (b'{"messages": {}}', "invalid_request"),
        (b'{"messages": [{"channel": "a", "payload": 1}], "channel": "a", "payload": 1}', "invalid_request"),
        (json.dumps({"messages": [{"channel": "a", "payload": n} for n in range(1001)]}).encode(), "invalid_request"),
        (b'{"channel": "a", "payload": "\\u0000", "durable": true}', "invalid_request"),
    ],
)
def test_bodies(api: HttpApi, body: bytes, code: str) -> None:
    if not body:  # requests would send no Content-Length
        answer = requests.post(f"{api.url}/api/publish", headers={"Content-Type": "application/json"}, timeout=60)
    else:
        answer = api.post(body)
    assert refusal(answer) == (400, code)


def test_json_is_read_as_over_sockets(api: HttpApi, subscriber: SocketClient, channel: str) -> None:
    body = f'{{"channel": "x", "channel": "{channel}", "payload": {{"a": 1, "a": 12345678901234567890123}}}}'
    assert api.post(body.encode()).status_code == 200
    assert subscriber.next("event")["payload"] == {"a": 12345678901234567890123}


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": ""},
        {"Content-Encoding": "gzip"},
    ],
)
def test_only_json(api: HttpApi, headers: dict[str, str]) -> None:
    assert refusal(api.post({"channel": "a", "payload": 1}, **headers)) == (415, "invalid_request")


def test_a_charset_does_no_harm(api: HttpApi) -> None:
    body = {"channel": "a", "payload": 1}
    assert api.post(body, **{"Content-Type": "application/json; charset=utf-8"}).status_code == 200


def test_a_large_body_is_refused_before_it_is_read(log: Log, api: HttpApi) -> None:
    with Connection(log.server) as connection:
        headers = {"Content-Type": "application/json", "Content-Length": str(MOST_BYTES + 1)}
        connection.request("POST", "/api/publish", headers)
        reply = connection.reply()  # though nothing of the body was sent
        assert (reply.status, reply.json["error"]["code"]) == (413, "payload_too_large")
        assert reply.headers["connection"] == "close"
        assert connection.closed()
    # The answer arrives although all of it is sent.
    assert refusal(api.publish("a", "x" * 3_000_000)) == (413, "payload_too_large")


@pytest.mark.parametrize("value", ["-1", "x", "1" * 30])
def test_lengths(log: Log, value: str) -> None:
    with Connection(log.server) as connection:
        connection.request("POST", "/api/publish", {"Content-Type": "application/json", "Content-Length": value})
        assert connection.reply().status in (400, 413)
        assert connection.closed()


def test_a_body_of_unknown_length(log: Log) -> None:
    with Connection(log.server) as connection:
        headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
        connection.request("POST", "/api/publish", headers)
        reply = connection.reply()
        assert (reply.status, reply.json["error"]["code"]) == (411, "invalid_request")
        assert connection.closed()


def test_a_body_that_does_not_come(log: Log) -> None:
    """A request holds a green thread for no longer than BODY_TIMEOUT."""
    with Connection(log.server) as connection:
        headers = {"Content-Type": "application/json", "Content-Length": "1000"}
        connection.request("POST", "/api/publish", headers)
        connection.send(b'{"channel": ')
        reply = connection.reply()
        assert (reply.status, reply.json["error"]["code"]) == (408, "invalid_request")
        assert connection.closed()


def test_one_connection_for_many_requests(log: Log, channel: str) -> None:
    with Connection(log.server) as connection:
        for number in range(3):
            body = json.dumps({"channel": channel, "payload": number}).encode()
            connection.request("POST", "/api/publish", {"Content-Type": "application/json"}, body)
            assert connection.reply().status == 200
            # An error about what was read whole does not end it.
            connection.request("POST", "/api/publish", {"Content-Type": "application/json"}, b"{}")
            assert connection.reply().status == 400
            connection.request("GET", f"/api/channels/{channel}/messages")
            assert connection.reply().status == 200
        # A body that nobody asked for is not taken for the next request.
        connection.request("GET", f"/api/channels/{channel}/messages", None, b"GET /healthz HTTP/1.1\r\n\r\n")
        assert connection.reply().status == 200
        assert connection.closed()


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_other_methods(log: Log, method: str) -> None:
    answer = requests.request(method, f"{log.server.url}/api/publish", timeout=60)
    assert answer.status_code == 405
    assert set(answer.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}


# -- replay ------------------------------------------------------------------------------------------------------------


def test_where_the_log_is_now(api: HttpApi, log: Log, channel: str) -> None:
    log.publish(channel, 1, 3)
    log.settle()
    [(epoch, position)] = log.sql(
        "SELECT epoch::text, (SELECT max(position) FROM socketio_pg.log) FROM socketio_pg.head"
    )
    assert api.page(channel) == {
        "channel": channel, "messages": [], "more": False, "epoch": epoch, "position": position,
    }  # fmt: skip


def test_messages_are_as_subscribers_get_them(api: HttpApi, log: Log, subscriber: SocketClient, channel: str) -> None:
    start = api.page(channel)
    # jsonb's own text is not touched: numbers of any size, any precision.
    log.sql('SELECT socketio_pg.publish(%s, \'{"n": 123456789012345678901234567890.10, "t": "ä"}\')', channel)
    message = subscriber.next("event")
    answer = api.messages(channel, **after(start))
    assert '"payload":{"n": 123456789012345678901234567890.10, "t": "ä"}' in answer.text
    page = answer.json()
    assert page["messages"] == [message]
    assert (page["recovered"], page["more"]) == (True, False)
    assert page["position"] >= message["position"]


def test_pages(api: HttpApi, log: Log, channel: str) -> None:
    start = api.page(channel)
    log.publish(channel, 1, 250)
    log.publish(f"{channel}-other", 1, 10)
    log.settle()
    page = api.page(channel, **after(start))
    assert [n for n, _ in payloads(page)] == list(range(1, USUAL_MESSAGES + 1))
    assert (page["more"], page["recovered"]) == (True, True)
    assert page["position"] == page["messages"][-1]["position"]
    page = api.page(channel, **after(page), limit=149)
    assert [n for n, _ in payloads(page)] == list(range(101, 250))
    assert page["more"] is True
    page = api.page(channel, **after(page), limit=1)
    # The last one: what others have published after it is no reason to ask again.
    assert [n for n, _ in payloads(page)] == [250]
    assert page["more"] is False
    assert page["position"] == page["messages"][-1]["position"] + 10
    assert payloads(api.page(channel, **after(page))) == []
    everything = api.page(channel, **after(start), limit=MOST_MESSAGES)
    assert [n for n, _ in payloads(everything)] == list(range(1, 251))


def test_history(api: HttpApi, log: Log, channel: str) -> None:
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


def test_a_page_is_bounded_in_bytes(api: HttpApi, log: Log, channel: str) -> None:
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
    assert max(sizes) < ENOUGH_CHARACTERS + 700_000


@pytest.mark.parametrize("from_memory", [True, False])
def test_no_seam_while_messages_are_being_published(api: HttpApi, log: Log, channel: str, from_memory: bool) -> None:
    """Pages of any size, from the beginning to the end, while there is always more; the live ones come as well."""
    start = api.page(channel)
    if not from_memory:
        log.publish(f"{channel}-other", 1, 60, 300_000)  # more than what is kept
        log.publish(channel, -50, -1)
        log.publish(f"{channel}-other", 1, 60, 300_000)
        log.settle()
    total = 300

    def publish() -> None:
        for number in range(1, total + 1):
            log.publish(channel, number, number, (number % 9 == 0) * 6000 + (number % 100 == 0) * 300_000)

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
    wanted = ([] if from_memory else list(range(-50, 0))) + list(range(1, total + 1))
    assert [message["payload"][0] for message in found] == wanted
    # A socket can go on where HTTP was, and the other way round.
    with SocketClient(log.server.url) as client:
        client.call("subscribe", {"channel": channel, "since": since(page, found[10]["position"])})
        assert client.next("event", 30)["payload"] == found[11]["payload"]


def test_what_cannot_be_recovered(api: HttpApi, log: Log, channel: str) -> None:
    log.publish(channel, 1, 3)
    log.settle()
    start = api.page(channel)
    where = {"epoch": start["epoch"], "position": start["position"]}
    empty = {"channel": channel, "messages": [], "more": False, "recovered": False} | where
    other = "00000000-0000-0000-0000-000000000000"
    assert api.page(channel, since=1, epoch=other) == empty | {"reason": "epoch_changed"}
    assert api.page(channel, since=2**62, epoch=start["epoch"]) == empty | {"reason": "position_unknown"}
    # From where it is, it goes on.
    log.publish(channel, 4, 4)
    log.settle()
    assert [n for n, _ in payloads(api.page(channel, **after(start)))] == [4]


def test_trimmed(postgres18: Cluster, channel: str) -> None:
    log = Log(postgres18, "http_trimmed", AUTO_INIT="1")
    try:
        wait_installed(log)
        api = HttpApi(log.server)
        start = api.page(channel)
        log.publish(channel, 1, 10)
        log.settle()
        with psycopg2.connect(log.url) as connection, connection.cursor() as cursor:
            # As the relay trims. A server that has just started does not have the messages in memory.
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


def test_a_log_that_is_recreated(postgres18: Cluster, channel: str) -> None:
    log = Log(postgres18, "http_recreated", AUTO_INIT="1")
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


def test_without_a_log(live_server: ServerProcess, channel: str) -> None:
    api = HttpApi(live_server)
    nothing = {"channel": channel, "messages": [], "more": False}
    assert api.page(channel) == nothing
    assert api.page(channel, history=5) == nothing
    assert api.page(channel, since=5, epoch="x") == nothing | {"recovered": False, "reason": "not_installed"}
    assert refusal(api.publish(channel, 1, durable=True)) == (400, "invalid_request")
    assert refusal(api.publish(channel, "x" * 8000)) == (413, "payload_too_large")
    with SocketClient(live_server.url) as client:
        client.call("subscribe", {"channel": channel})
        assert api.publish(channel, 1).status_code == 200
        assert client.next("event") == {"channel": channel, "payload": 1}


@pytest.mark.parametrize(
    "query",
    [
        {"since": 1}, {"epoch": "x"}, {"since": "x", "epoch": "x"}, {"since": -1, "epoch": "x"},
        {"since": 2**63, "epoch": "x"}, {"since": "٣", "epoch": "x"}, {"since": [1, 2], "epoch": "x"},
        {"since": 1, "epoch": "x", "history": 1}, {"history": 1001}, {"history": ""}, {"history": "1.0"},
        {"limit": 0}, {"limit": 1001}, {"limit": "9" * 30},
    ],
)  # fmt: skip
def test_queries_that_make_no_sense(api: HttpApi, channel: str, query: dict[str, Any]) -> None:
    assert refusal(api.messages(channel, **query)) == (400, "invalid_request")


@pytest.mark.parametrize("name", ["a/b", "/a", "a//b", "ä€😀", "a b", "a?b#c", "%2F", "messages", "a/messages", "+&;="])
def test_every_channel_has_an_address(api: HttpApi, log: Log, name: str) -> None:
    start = api.page(name)
    assert start["channel"] == name
    log.publish(name, 1, 1)
    log.settle()
    assert [n for n, _ in payloads(api.page(name, **after(start)))] == [1]


@pytest.mark.parametrize("path", ["%20a", "a*", "socketio_pg", "a%00", "a%0Ab", "%ff", "", "a" * 64])
def test_what_is_no_channel(api: HttpApi, path: str) -> None:
    answer = requests.get(f"{api.url}/api/channels/{path}/messages", timeout=60)
    assert refusal(answer) == (400, "invalid_channel")


def test_a_client_that_is_further_on_than_this_node(api: HttpApi, log: Log, channel: str) -> None:
    """Behind a load balancer the last answer may have come from another node: a page is never before `since`."""
    with SocketClient(log.server.url) as client:
        for number in range(20):
            client.call("subscribe", {"channel": channel})
            log.publish(channel, number, number)
            position = client.next("event")["position"]
            page = api.page(channel, since=position, epoch=api.page(channel)["epoch"])
            assert (page["messages"], page["recovered"]) == ([], True)
            assert page["position"] >= position
            client.call("unsubscribe", {"channel": channel})


def test_it_can_be_switched_off(postgres18: Cluster) -> None:
    server = ServerProcess(postgres18.url(), HTTP_API="0")
    try:
        assert HttpApi(server).publish("a", 1).status_code == 404
        assert HttpApi(server).messages("a").status_code == 404
        assert server.get("/api/openapi.json")[0] == 404
    finally:
        server.close()
