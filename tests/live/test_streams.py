"""Streams of Server-Sent Events at a real server."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.log import Log, wait_installed
from tests.support.postgres import Cluster
from tests.support.sse import RefusedError, Stream


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "live_streams", AUTO_INIT="1", HTML_CHANNELS="html-*", SEND_BUFFER_BYTES="100000")
    wait_installed(made)
    yield made
    made.server.close()


def test_messages_of_several_channels_share_one_cursor(log: Log, channel: str) -> None:
    other = f"{channel}-b"
    with Stream(log.server.url, channel, other) as stream:
        assert stream.answer.headers["Content-Type"] == "text/event-stream"
        assert stream.answer.headers["X-Accel-Buffering"] == "no"
        subscribed = stream.next()
        assert subscribed.name == "subscribed"
        assert subscribed.json["channels"] == [channel, other]
        log.publish(channel, 1, 2)
        log.publish(other, 3, 3)
        messages = [stream.next() for _ in range(3)]
        assert [one.json["channel"] for one in messages] == [channel, channel, other]
        epoch = subscribed.json["epoch"]
        assert [one.id for one in messages] == [f"{epoch}:{one.json['position']}" for one in messages]
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


def test_many_channels_are_merged_in_a_replay_while_others_publish(log: Log, channel: str) -> None:
    channels = [f"{channel}-{number}" for number in range(30)]
    start = Stream(log.server.url, *channels)
    first = start.next()
    start.close()

    def publish() -> None:
        log.sql(
            "SELECT socketio_pg.publish(%s || n %% 30, to_jsonb(n)) FROM generate_series(0, 2999) AS n", f"{channel}-"
        )

    writer = threading.Thread(target=publish)
    writer.start()
    writer.join()
    log.settle()
    got: list[Any] = []
    last = first.id
    # Cut again and again at any place, and continued from the last id.
    for size in (1, 700, 999, 1300):
        with Stream(log.server.url, *channels, last_id=last) as stream:
            assert stream.until("subscribed").json["recovered"] is True
            got += stream.payloads(size)
            last = f"{first.json['epoch']}:{first.json['position'] + len(got)}"
    assert got == list(range(3000))


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({"since": "x"}, 400, "invalid_request"),
        ({"since": "x:1", "history": 1}, 400, "invalid_request"),
        ({"history": 5000}, 400, "invalid_request"),
        ({"filter": "{"}, 400, "invalid_request"),
        ({"format": "html"}, 403, "forbidden"),
        ({"format": "xml"}, 400, "invalid_request"),
        ({"numbers": "float"}, 400, "invalid_request"),
        ({"access_token": "secret"}, 400, "invalid_request"),
        ({"ticket": "forged"}, 401, "unauthorized"),
    ],
)
def test_what_stays_wrong_is_an_error(log: Log, channel: str, query: dict[str, Any], status: int, code: str) -> None:
    with pytest.raises(RefusedError) as refused:
        Stream(log.server.url, channel, **query)
    assert (refused.value.status, refused.value.code) == (status, code)
