"""What clients ask to publish, and what they get as an answer."""

from typing import Any

import pytest

from socketio_pg.core.errors import InvalidChannelError, InvalidRequestError, RateLimitedError, SocketIOPGError
from socketio_pg.core.messages import Position
from socketio_pg.core.publications import (
    MAX_BATCH,
    Publication,
    Published,
    naming_message,
    requested_publication,
    requested_publications,
    requested_wait,
)


def test_publication_is_parsed() -> None:
    assert requested_publication({"channel": "a", "payload": None}) == Publication("a", None)
    assert requested_publication({"channel": "a", "payload": 1, "durable": None, "more": 1}) == Publication("a", 1)
    for durable in (True, False):
        assert requested_publication({"channel": "a", "payload": 1, "durable": durable}).durable is durable
    for id in ("x", " ", "\u00e9" * 32):
        assert requested_publication({"channel": "a", "payload": 1, "id": id}) == Publication("a", 1, None, id)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({}, InvalidChannelError),
        ({"channel": 1, "payload": 1}, InvalidChannelError),
        ({"channel": "a"}, InvalidRequestError),
        ({"channel": "a", "payload": 1, "durable": 1}, InvalidRequestError),
        ({"channel": "a", "payload": 1, "id": 1}, InvalidRequestError),
        ({"channel": "a", "payload": 1, "id": ""}, InvalidRequestError),
        ({"channel": "a", "payload": 1, "id": "\u00e9" * 33}, InvalidRequestError),
        ({"channel": "a", "payload": 1, "id": "a\x7f"}, InvalidRequestError),
        ({"channel": "a", "payload": 1, "id": "\ud800"}, InvalidRequestError),
    ],
)
def test_invalid_publication_is_refused_with_its_index(request_: dict[str, Any], error: type[SocketIOPGError]) -> None:
    with pytest.raises(error) as raised:
        requested_publication(request_)
    with pytest.raises(error) as of_many:
        requested_publications([{"channel": "a", "payload": 1}, request_])
    assert of_many.value.message == f"messages[1]: {raised.value.message}"
    assert of_many.value.channel == raised.value.channel


def test_publications_are_parsed() -> None:
    found = requested_publications([{"channel": "a", "payload": n} for n in range(MAX_BATCH)])
    assert found == [Publication("a", n) for n in range(MAX_BATCH)]


@pytest.mark.parametrize("messages", [None, {}, "text", [], [{"channel": "a", "payload": 1}] * (MAX_BATCH + 1)])
def test_invalid_list_of_publications_is_refused(messages: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"1 to {MAX_BATCH}"):
        requested_publications(messages)
    with pytest.raises(InvalidRequestError) as raised:
        requested_publications([messages])
    assert raised.value.message.startswith("messages[0]: ")


def test_shared_error_is_not_modified() -> None:
    shared = RateLimitedError("too much", channel="a")
    shared.retry_after = 7.0
    for index in range(3):
        with pytest.raises(RateLimitedError) as raised, naming_message(index):
            raise shared
        assert (raised.value.message, raised.value.channel) == (f"messages[{index}]: too much", "a")
        assert raised.value.retry_after == 7.0
    assert shared.message == "too much"


def test_wait_is_the_default() -> None:
    assert requested_wait({})
    assert requested_wait({"wait": None})
    assert requested_wait({"wait": True})
    assert not requested_wait({"wait": False})
    with pytest.raises(InvalidRequestError, match="wait must be true or false"):
        requested_wait({"wait": 0})


@pytest.mark.parametrize(
    ("published", "wire"),
    [
        (Published("a", False, True), {"channel": "a"}),
        (Published("a", False, True, duplicate=True), {"channel": "a", "duplicate": True}),
        (Published("a", True), {"channel": "a"}),
        (Published("a", True, True), {"channel": "a", "epoch": None, "position": None}),
        (
            Published("a", True, True, Position(epoch="e", position=7), duplicate=True),
            {"channel": "a", "epoch": "e", "position": 7, "duplicate": True},
        ),
    ],
)
def test_answers(published: Published, wire: dict[str, Any]) -> None:
    assert published.to_wire() == wire
