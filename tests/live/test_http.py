"""Publishing over HTTP at a real server: requests, responses, and the messages that subscribers receive."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from socketio_pg.core.publications import MAX_BATCH
from tests.support.clients import SocketClient
from tests.support.http_api import HttpApi, after, payloads, refusal
from tests.support.log import Log, wait_installed
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster
from tests.support.raw_http import Connection
from tests.support.server import ServerProcess

NO_LIMITS = {"MAX_EVENTS_PER_SECOND": "0", "MAX_EVENT_BYTES_PER_SECOND": "0"}
#: The largest request body: the largest payload and 64 KiB for the rest.
MAX_BYTES = 1_000_000 + 65_536


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "http_log", AUTO_INIT="1", DURABLE_CHANNELS="always:*", **NO_LIMITS)
    wait_installed(made)
    yield made
    made.server.close()


# -- publishing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [{"a": [1, 2.5, None, True]}, "text", "", 0, None, [], 2**70, "ä€😀\u2028"])
@pytest.mark.parametrize("durable", [False, True])
def test_published_message_reaches_the_subscriber(
    api: HttpApi, subscriber: SocketClient, channel: str, payload: Any, durable: bool
) -> None:
    answer = api.publish(channel, payload, durable=durable)
    published = answer.json()
    assert (answer.status_code, published["channel"]) == (200, channel)
    assert sorted(published) == (["channel", "epoch", "position"] if durable else ["channel"])
    message = subscriber.next("event")
    assert message["payload"] == payload
    assert ("position" in message) is durable


def test_size_and_channel_choose_notify_or_log(api: HttpApi, log: Log, subscriber: SocketClient, channel: str) -> None:
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


def test_batch_of_maximum_size_is_published(api: HttpApi, subscriber: SocketClient, channel: str) -> None:
    messages = [{"channel": channel, "payload": number, "durable": True} for number in range(MAX_BATCH)]
    answer = api.publish_together(*messages)
    assert (answer.status_code, answer.json()["published"]) == (200, MAX_BATCH)
    positions = [result["position"] for result in answer.json()["messages"]]
    assert positions == list(range(positions[0], positions[0] + MAX_BATCH))
    assert [subscriber.next("event")["payload"] for _ in messages] == list(range(MAX_BATCH))
    # A batch that mixes durable and other messages.
    mixed = [{"channel": channel, "payload": n, "durable": n % 2 == 0} for n in range(10)]
    assert api.publish_together(*mixed).status_code == 200
    found = [subscriber.next("event") for _ in mixed]
    assert [message["payload"] for message in found if "position" in message] == [0, 2, 4, 6, 8]
    assert [message["payload"] for message in found if "position" not in message] == [1, 3, 5, 7, 9]


def test_batch_is_published_in_one_transaction(api: HttpApi, log: Log, channel: str) -> None:
    before = api.page(channel)
    answer = api.publish_together(*({"channel": channel, "payload": n, "durable": True} for n in range(20)))
    assert answer.status_code == 200
    log.settle()
    page = api.page(channel, **after(before))
    [(transactions,)] = log.sql("SELECT count(DISTINCT xmin::text) FROM socketio_pg.log WHERE channel = %s", channel)
    assert payloads(page) == list(range(20))
    # The relay moves the messages of one transaction together.
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
def test_invalid_message_rejects_the_whole_batch(
    api: HttpApi, subscriber: SocketClient, channel: str, bad: Any, code: str
) -> None:
    good = [{"channel": channel, "payload": n, "durable": n > 2} for n in range(6)]
    answer = api.publish_together(*good, bad)
    assert refusal(answer)[1] == code
    assert answer.json()["error"]["message"].startswith("messages[6]: ")
    assert_nothing_published(api, subscriber, channel)


def test_message_refused_by_postgresql_rejects_the_whole_batch(
    api: HttpApi, subscriber: SocketClient, channel: str
) -> None:
    good = [{"channel": channel, "payload": n, "durable": n > 2} for n in range(6)]
    answer = api.publish_together(*good, {"channel": channel, "payload": "\0", "durable": True})
    assert refusal(answer) == (400, "invalid_request")
    assert_nothing_published(api, subscriber, channel)


def assert_nothing_published(api: HttpApi, subscriber: SocketClient, channel: str) -> None:
    """Assert that the next message is the first to arrive, both from the log and from NOTIFY."""
    for durable in (True, False):
        assert api.publish(channel, "next", durable=durable).status_code == 200
        message = subscriber.next("event")
        assert (message["payload"], "position" in message) == ("next", durable)


def test_equal_messages_in_one_batch_need_the_log(api: HttpApi, subscriber: SocketClient, channel: str) -> None:
    """PostgreSQL silently drops duplicate NOTIFYs within one transaction."""
    twice = [{"channel": channel, "payload": {"same": 1}}] * 2
    answer = api.publish_together(*twice)
    assert refusal(answer) == (400, "invalid_request")
    assert answer.json()["error"]["message"].startswith("messages[1]: the same message")
    assert api.publish_together(*({**message, "durable": True} for message in twice)).status_code == 200
    assert [subscriber.next("event")["payload"] for _ in twice] == [{"same": 1}] * 2
    # Separate requests may publish equal messages.
    assert [api.post(message).status_code for message in twice] == [200, 200]
    assert ["position" in subscriber.next("event") for _ in twice] == [False, False]


def test_concurrent_requests_are_published_separately(log: Log, subscriber: SocketClient, channel: str) -> None:
    """Messages of concurrent requests share a commit; equal messages and batches stay separate and in order."""
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


# -- refused requests -------------------------------------------------------------------------------------------------


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
def test_invalid_bodies_are_refused(api: HttpApi, body: bytes, code: str) -> None:
    if not body:  # requests would send no Content-Length
        answer = requests.post(f"{api.url}/api/publish", headers={"Content-Type": "application/json"}, timeout=PATIENCE)
    else:
        answer = api.post(body)
    assert refusal(answer) == (400, code)


def test_json_is_parsed_as_over_sockets(api: HttpApi, subscriber: SocketClient, channel: str) -> None:
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
def test_other_content_types_are_refused(api: HttpApi, headers: dict[str, str]) -> None:
    assert refusal(api.post({"channel": "a", "payload": 1}, **headers)) == (415, "invalid_request")


def test_charset_is_accepted(api: HttpApi) -> None:
    body = {"channel": "a", "payload": 1}
    assert api.post(body, **{"Content-Type": "application/json; charset=utf-8"}).status_code == 200


def test_large_body_is_refused_before_it_is_read(log: Log, api: HttpApi) -> None:
    with Connection(log.server) as connection:
        headers = {"Content-Type": "application/json", "Content-Length": str(MAX_BYTES + 1)}
        connection.request("POST", "/api/publish", headers)
        reply = connection.reply()  # before any of the body is sent
        assert (reply.status, reply.json["error"]["code"]) == (413, "payload_too_large")
        assert reply.headers["connection"] == "close"
        assert connection.closed()
    # The answer also reaches a client that sends the whole body.
    assert refusal(api.publish("a", "x" * 3_000_000)) == (413, "payload_too_large")


@pytest.mark.parametrize("value", ["-1", "x", "1" * 30])
def test_invalid_content_length_is_refused(log: Log, value: str) -> None:
    with Connection(log.server) as connection:
        connection.request("POST", "/api/publish", {"Content-Type": "application/json", "Content-Length": value})
        assert connection.reply().status in (400, 413)
        assert connection.closed()


def test_missing_body_times_out(log: Log) -> None:
    """A request holds a green thread for no longer than BODY_TIMEOUT."""
    with Connection(log.server) as connection:
        headers = {"Content-Type": "application/json", "Content-Length": "1000"}
        connection.request("POST", "/api/publish", headers)
        connection.send(b'{"channel": ')
        reply = connection.reply()
        assert (reply.status, reply.json["error"]["code"]) == (408, "invalid_request")
        assert connection.closed()


def test_connection_serves_many_requests(log: Log, channel: str) -> None:
    with Connection(log.server) as connection:
        for number in range(3):
            body = json.dumps({"channel": channel, "payload": number}).encode()
            connection.request("POST", "/api/publish", {"Content-Type": "application/json"}, body)
            assert connection.reply().status == 200
            # An error keeps the connection open if the body was read completely.
            connection.request("POST", "/api/publish", {"Content-Type": "application/json"}, b"{}")
            assert connection.reply().status == 400
            connection.request("GET", f"/api/channels/{channel}/messages")
            assert connection.reply().status == 200
        # An unexpected body is not parsed as the next request.
        connection.request("GET", f"/api/channels/{channel}/messages", None, b"GET /healthz HTTP/1.1\r\n\r\n")
        assert connection.reply().status == 200
        assert connection.closed()


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_other_methods_are_refused(log: Log, method: str) -> None:
    answer = requests.request(method, f"{log.server.url}/api/publish", timeout=PATIENCE)
    assert answer.status_code == 405
    assert set(answer.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/nothing", 404), ("GET", "/api/", 404), ("GET", "/api/channels/a", 404),
        ("POST", "/api/publish/", 404), ("PATCH", "/api/nothing", 404),
        ("GET", "/api/publish", 405), ("PROPFIND", "/api/publish", 405), ("DELETE", "/api/channels/a/messages", 405),
        ("POST", "/api/openapi.json", 405),
    ],
)  # fmt: skip
def test_paths_and_methods_that_do_not_exist_are_answered_with_json(
    log: Log, method: str, path: str, status: int
) -> None:
    own = {"Origin": log.server.url}
    answer = requests.request(method, log.server.url + path, data=b"x" * 100_000, headers=own, timeout=PATIENCE)
    assert refusal(answer) == (status, "invalid_request")
    assert ("Allow" in answer.headers) is (status == 405)
    assert answer.headers["Access-Control-Allow-Origin"] == log.server.url, "a page can read the answer"
    assert answer.headers["Connection"] == "close", "the body was not read"


def test_http_api_can_be_disabled(newest_pg: Cluster) -> None:
    server = ServerProcess(newest_pg.url(), HTTP_API="0")
    try:
        assert HttpApi(server).publish("a", 1).status_code == 404
        assert HttpApi(server).messages("a").status_code == 404
        assert server.get("/api/openapi.json")[0] == 404
    finally:
        server.close()
