"""Streams of Server-Sent Events at a real server: cursors, replays, slow readers, forms, requests that stay wrong."""

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen

import psycopg2
import pytest

from tests.support.http_api import HttpApi, refusal
from tests.support.log import Log, wait_installed
from tests.support.metrics import TOKEN, scrape
from tests.support.nodes import Nginx
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.sse import Event, Parser, RefusedError, Stream, stream_path


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    settings = {"AUTO_INIT": "1", "HTML_CHANNELS": "html-*", "SEND_BUFFER_BYTES": "100000", "METRICS_TOKEN": TOKEN}
    made = Log(newest_pg, "live_streams", app="tests.support.streams_app:app", COMMENT_SECONDS="0.2", **settings)
    wait_installed(made)
    yield made
    made.server.close()


def test_stream_that_begins_with_a_snapshot_may_be_cut_anywhere(log: Log, channel: str) -> None:
    """A message of the snapshot gets its position after one that is not in it: the id in between is a token too."""
    publish = "SELECT socketio_pg.publish(%s, %s::int::text::jsonb)"
    with contextlib.closing(psycopg2.connect(log.url)) as blocking, blocking.cursor() as relay:
        relay.execute("SELECT FROM socketio_pg.head FOR UPDATE")  # the relay waits
        with contextlib.closing(psycopg2.connect(log.url)) as late, late.cursor() as cursor:
            cursor.execute(publish, (channel, 1))
            log.sql(publish, channel, 2)
            [(token,)] = log.sql("SELECT socketio_pg.snapshot()")
            late.commit()
        with Stream(log.server.url, channel, since=token) as stream:
            assert stream.next().id == token
            blocking.rollback()
            first = stream.until()
            assert (first.json["payload"], first.id[:9]) == (1, "snapshot:")
            live = stream.until("live")
            assert live.id == f"{live.json['epoch']}:{live.json['position']}"
    log.sql(publish, channel, 3)
    for place in (token, first.id, live.id):
        with Stream(log.server.url, channel, last_id=place) as stream:
            expected = [1, 3] if place == token else [3]
            assert [stream.until().json["payload"] for _ in expected] == expected


@pytest.mark.green
def test_messages_of_several_channels_share_one_cursor(log: Log, channel: str) -> None:
    other = f"{channel}-b"
    with Stream(log.server.url, channel, other) as stream:
        assert stream.answer.headers["Content-Type"] == "text/event-stream"
        assert stream.answer.headers["Cache-Control"] == "no-store, no-transform"
        assert stream.answer.headers["X-Accel-Buffering"] == "no"
        subscribed = stream.next()
        assert (subscribed.name, subscribed.json["channels"]) == ("subscribed", [channel, other])
        assert stream.parser.retry is not None
        log.publish(channel, 1, 2)
        log.publish(other, 3, 3)
        messages = [stream.next() for _ in range(3)]
        assert [one.json["channel"] for one in messages] == [channel, channel, other]
        epoch = subscribed.json["epoch"]
        assert [one.id for one in messages] == [f"{epoch}:{one.json['position']}" for one in messages]
        log.sql("SELECT pg_notify(%s, '[1,\r\n2]')", other)
        assert stream.next() == Event("message", f'{{"channel":"{other}","payload":[1,\n2]}}', messages[-1].id)
    log.publish(other, 4, 4)
    log.publish(channel, 5, 5)
    log.settle()
    # The second message is not sent again, the third one is.
    with Stream(log.server.url, channel, other, last_id=messages[1].id) as stream:
        assert stream.next().json["recovered"] is True
        again = [stream.next() for _ in range(3)]
        assert again[0] == messages[2]
        assert [one.json["channel"] for one in again] == [other, other, channel]
        live = stream.next()
        assert (live.name, live.id) == ("live", again[-1].id)


def test_a_replay_of_many_channels_can_be_cut_at_any_place(log: Log, channel: str) -> None:
    channels = [f"{channel}-{number}" for number in range(30)]
    with Stream(log.server.url, *channels) as start:
        first = start.next()
    log.sql("SELECT socketio_pg.publish(%s || n %% 30, to_jsonb(n)) FROM generate_series(0, 2999) AS n", f"{channel}-")
    log.settle()
    got: list[Any] = []
    last = first.id
    for size in (1, 700, 999, 1300):
        with Stream(log.server.url, *channels, last_id=last) as stream:
            assert stream.until("subscribed").json["recovered"] is True
            messages = [stream.until() for _ in range(size)]
            got += [one.json["payload"] for one in messages]
            last = messages[-1].id
    assert got == list(range(3000))


def test_where_a_stream_begins(log: Log, channel: str) -> None:
    log.publish(channel, 1, 3)
    log.settle()
    with Stream(log.server.url, channel, history=2) as stream:
        assert "recovered" not in stream.next().json
        assert [payload[0] for payload in stream.payloads(2)] == [2, 3]
        assert stream.next().name == "live"
    with Stream(log.server.url, channel, since="earliest", filter={"0": [1, 3]}, numbers="string") as stream:
        assert stream.next().json["filter"] == {"0": [1, 3]}
        assert [payload[0] for payload in stream.payloads(2)] == ["1", "3"]
        end = stream.until("live").id
        log.publish(channel, 2, 3)
        assert [payload[0] for payload in stream.payloads(1)] == ["3"]
    # The header beats the query, as in an EventSource that connects again.
    with Stream(log.server.url, channel, last_id=end, history=2) as stream:
        assert stream.next().json["recovered"] is True
        assert [payload[0] for payload in stream.payloads(2)] == [2, 3]
    epoch = end.partition(":")[0]
    another = ("1" if epoch.startswith("0") else "0") + end[1:]
    for cursor, reason in [
        ("nonsense", "position_unknown"), ("x" * 8_000, "position_unknown"), ("e:1, e:2", "position_unknown"),
        (f"{epoch}:999999999", "position_unknown"), (another, "epoch_changed"),
    ]:  # fmt: skip
        with Stream(log.server.url, channel, last_id=cursor) as stream:
            subscribed, gap, live = stream.next(), stream.next(), stream.next()
            assert (subscribed.json["recovered"], subscribed.json["reason"]) == (False, reason)
            assert (gap.name, gap.json["reason"], gap.id) == ("gap", reason, subscribed.id)
            assert live.name == "live"


def test_the_cursor_of_a_quiet_stream_moves_on(log: Log, channel: str) -> None:
    with Stream(log.server.url, channel) as stream:
        began = stream.next().id
        log.publish(f"{channel}-other", 1, 3)
        log.settle()
        until(lambda: stream.parser.comments > 1 and stream.parser.last_id != began, "the cursor has moved")
        assert [event.name for event in stream.events] == ["subscribed"]
        log.publish(channel, 4, 4)
        stream.payloads(1)
    with Stream(log.server.url, channel, last_id=stream.parser.last_id) as again:
        assert [again.next().name, again.next().name] == ["subscribed", "live"]


def test_a_slow_reader_gets_the_log_at_its_own_speed(log: Log, channel: str) -> None:
    """More than the buffers of both kernels and of the server hold."""
    count, size = 300, 20_000
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 300_000)
    made.connect(("127.0.0.1", log.server.port))
    with made:
        made.sendall(f"GET {stream_path(channel)} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        head = made.recv(4096)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        log.publish(channel, 1, count, pad=size)
        until(lambda: scrape(log.server)['replays_total{cause="lagging"}'] > 0, "it lags")
        parser, events = Parser(), list[Event]()
        parser._first = False
        list(parser.feed(head.partition(b"\r\n\r\n")[2]))
        while len(events) < count:
            events += [event for event in parser.feed(made.recv(65536)) if event.name == "message"]
            if len(events) in (1, count // 2):
                assert scrape(log.server)["send_buffer_bytes"] < 200_000
        assert [event.json["payload"][0] for event in events] == list(range(1, count + 1))


def test_html_of_the_log_in_channels_that_clients_cannot_publish_to(log: Log, channel: str) -> None:
    html = f"html-{channel}"
    with Stream(log.server.url, html, format="html") as stream, Stream(log.server.url, html) as json_stream:
        stream.until("subscribed")
        log.sql("SELECT pg_notify(%s, %s)", html, '{"html": "<script>forged</script>"}')
        for payload in ('{"x": 1}', '{"event": "card", "html": "<li>\\n1</li>"}', '{"html": "<p>"}'):
            log.sql("SELECT socketio_pg.publish(%s, %s::jsonb)", html, payload)
        events = [stream.next(), stream.next()]
        assert [(event.name, event.data) for event in events] == [("card", "<li>\n1</li>"), ("message", "<p>")]
        assert [payload.get("x") for payload in json_stream.payloads(4)] == [None, 1, None, None]
    # An EventSource of htmx that comes back.
    with Stream(log.server.url, html, format="html", last_id=events[0].id) as stream:
        assert [stream.next().name, stream.next()] == ["subscribed", events[1]]
    assert refusal(HttpApi(log.server).publish(html, {"html": "<script>"})) == (403, "forbidden")


def test_curl_prints_messages_as_they_come(log: Log, channel: str) -> None:
    command = ["curl", "-sSN", f"{log.server.url}{stream_path(channel)}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as curl:
        assert curl.stdout is not None
        lines = iter(curl.stdout.readline, "")
        next(line for line in lines if line.startswith("event: subscribed"))
        log.publish(channel, 7, 7)
        data = next(line for line in lines if line.startswith("data: ") and "payload" in line)
        assert '"payload":[7, ""]' in data
        curl.terminate()


def test_messages_pass_nginx_as_they_come(log: Log, channel: str) -> None:
    """With the configuration in deploy/, which has nothing for streams: the response tells nginx not to collect it."""
    with contextlib.closing(Nginx([log.server.port])) as nginx, Stream(nginx.url, channel) as stream:
        stream.until("subscribed")
        log.publish(channel, 1, 1)
        assert [payload[0] for payload in stream.payloads(1)] == [1]


def test_what_stays_wrong_is_an_error(log: Log, channel: str) -> None:
    wrong: list[tuple[dict[str, Any], int, str]] = [
        ({"since": "x"}, 400, "invalid_request"),
        ({"since": "x:1", "history": 1}, 400, "invalid_request"),
        ({"history": 5000}, 400, "invalid_request"),
        ({"filter": "{"}, 400, "invalid_request"),
        ({"filter": '{"a": {"no": 1}}'}, 400, "invalid_request"),
        ({"format": "html"}, 403, "forbidden"),
        ({"format": "xml"}, 400, "invalid_request"),
        ({"numbers": "float"}, 400, "invalid_request"),
        ({"access_token": "secret"}, 400, "invalid_request"),
        ({"ticket": "forged"}, 401, "unauthorized"),
    ]
    for query, status, code in wrong:
        with pytest.raises(RefusedError) as refused:
            Stream(log.server.url, channel, **query)
        assert (refused.value.status, refused.value.code) == (status, code), query
    for channels in ((), ("a", "*"), ("a", "b\r\nid: 7"), [f"{number}" for number in range(101)]):
        with pytest.raises(RefusedError) as refused:
            Stream(log.server.url, *channels)
        assert refused.value.status == 400


def test_head_opens_no_stream(log: Log, channel: str) -> None:
    with urlopen(Request(f"{log.server.url}{stream_path(channel)}", method="HEAD"), timeout=PATIENCE) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.read() == b""
    assert scrape(log.server)['connections{transport="stream"}'] == 0
