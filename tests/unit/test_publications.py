"""socketio_pg.publications: what is asked for, and which of many a refusal is about."""

from typing import Any

import pytest

from socketio_pg.core.errors import InvalidChannelError, InvalidRequestError, RateLimitedError, SocketIOPGError
from socketio_pg.core.messages import (
    MAX_BATCH,
    Publication,
    naming_message,
    requested_publication,
    requested_publications,
)


def test_one() -> None:
    assert requested_publication({"channel": "a", "payload": None}) == Publication("a", None)
    assert requested_publication({"channel": "a", "payload": 1, "durable": None, "more": 1}) == Publication("a", 1)
    for durable in (True, False):
        assert requested_publication({"channel": "a", "payload": 1, "durable": durable}).durable is durable


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({}, InvalidChannelError),
        ({"channel": 1, "payload": 1}, InvalidChannelError),
        ({"channel": "a"}, InvalidRequestError),
        ({"channel": "a", "payload": 1, "durable": 1}, InvalidRequestError),
    ],
)
def test_refused(request_: dict[str, Any], error: type[SocketIOPGError]) -> None:
    with pytest.raises(error) as raised:
        requested_publication(request_)
    with pytest.raises(error) as of_many:
        requested_publications([{"channel": "a", "payload": 1}, request_])
    assert of_many.value.message == f"messages[1]: {raised.value.message}"
    assert of_many.value.channel == raised.value.channel


def test_many() -> None:
    found = requested_publications([{"channel": "a", "payload": n} for n in range(MAX_BATCH)])
    assert found == [Publication("a", n) for n in range(MAX_BATCH)]


@pytest.mark.parametrize("messages", [None, {}, "text", [], [{"channel": "a", "payload": 1}] * (MAX_BATCH + 1)])
def test_what_is_no_list_of_them(messages: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"1 to {MAX_BATCH}"):
        requested_publications(messages)
    with pytest.raises(InvalidRequestError) as raised:
        requested_publications([messages])
    assert raised.value.message.startswith("messages[0]: ")


def test_an_error_that_others_get_too_stays_as_it_is() -> None:
    shared = RateLimitedError("too much", channel="a")
    shared.retry_after = 7.0
    for index in range(3):
        with pytest.raises(RateLimitedError) as raised, naming_message(index):
            raise shared
        assert (raised.value.message, raised.value.channel) == (f"messages[{index}]: too much", "a")
        assert raised.value.retry_after == 7.0
    assert shared.message == "too much"
