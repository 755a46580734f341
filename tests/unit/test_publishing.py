"""One call of publish() of a Python client: what it sends, and what the answers mean."""

from typing import Any

import pytest

from socketio_pg.core.errors import ForbiddenError, InvalidRequestError, LogNotInstalledError
from socketio_pg.core.messages import Position
from socketio_pg.core.publications import Published
from socketio_pg.subscriber.publishing import Publishing

FEATURES = ["publish_id"]


def publishing(durable: bool | None = None, id: str | None = None, wait: bool = True) -> Publishing:
    return Publishing("a", 1, durable, id, wait)


def refused(code: str) -> dict[str, Any]:
    return {"ok": False, "error": {"code": code, "message": "no"}}


def test_message_gets_the_same_id_on_each_connection() -> None:
    call = publishing()
    body = dict(call.body(FEATURES))
    assert len(body.pop("id")) == 32
    assert body == {"channel": "a", "payload": 1}
    assert call.repeatable
    assert call.body(FEATURES)["id"] == call.body(FEATURES)["id"]
    assert publishing(id="mine").body(FEATURES)["id"] == "mine"
    assert publishing(True, wait=False).body(FEATURES).items() >= {"durable": True, "wait": False}.items()


@pytest.mark.parametrize(("durable", "features"), [(None, []), (True, ["another"]), (False, FEATURES)])
def test_message_without_an_id(durable: bool | None, features: list[str]) -> None:
    call = publishing(durable)
    assert "id" not in call.body(features)
    assert not call.repeatable


def test_server_without_ids_gets_no_message_that_needs_one() -> None:
    with pytest.raises(InvalidRequestError, match="older version"):
        publishing(id="mine").body([])
    call = publishing()
    call.body(FEATURES)
    call.sent = True
    with pytest.raises(ConnectionError, match="may have been sent or not"):
        call.body([])


def test_message_is_sent_without_an_id_when_there_is_no_schema() -> None:
    call = publishing()
    call.body(FEATURES)
    assert call.finish(refused("log_not_installed")) is None
    assert "id" not in call.body(FEATURES)
    assert "id" not in publishing().body(FEATURES, adds_id=False)
    with pytest.raises(LogNotInstalledError):
        call.finish(refused("log_not_installed"))
    # Nothing else can be done about an id that the caller wants.
    call = publishing(id="mine")
    call.body(FEATURES)
    with pytest.raises(LogNotInstalledError):
        call.finish(refused("log_not_installed"))
    with pytest.raises(ForbiddenError):
        publishing().finish(refused("forbidden"))


def test_results() -> None:
    ok = {"ok": True, "channel": "a"}
    assert publishing(False).finish(ok) == Published("a", False, True)
    assert publishing(True, wait=False).finish(ok) == Published("a", True)
    assert publishing().finish(ok | {"epoch": None, "position": None}) == Published("a", True, True)
    place = {"epoch": "e", "position": 7}
    assert publishing().finish(ok | place) == Published("a", True, True, Position(epoch="e", position=7))
    assert publishing().finish(ok | place | {"duplicate": True}) == Published(
        "a", True, True, Position(epoch="e", position=7), duplicate=True
    )


def test_duplicate_of_an_earlier_request_of_the_same_call_is_none() -> None:
    call = publishing()
    call.body(FEATURES)
    call.sent = True
    published = call.finish({"ok": True, "channel": "a", "epoch": "e", "position": 7, "duplicate": True})
    assert published is not None
    assert not published.duplicate
    assert published.position == 7
