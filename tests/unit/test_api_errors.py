"""HTTP answers for all errors."""

import json

import pytest

from socketio_pg.core import errors
from socketio_pg.core.errors import DatabaseUnavailableError, ForbiddenError, RateLimitedError, UnauthorizedError
from socketio_pg.engine.polling import BodyError
from socketio_pg.web.api_errors import BODY_STATUSES, ONLY_SOCKETS, STATUSES, answer, of_body


def test_every_code_has_a_status_or_is_only_for_sockets() -> None:
    assert STATUSES.keys() | ONLY_SOCKETS == errors.wire_codes()
    assert not STATUSES.keys() & ONLY_SOCKETS


def test_body_status_and_headers_of_an_answer() -> None:
    body, status, headers = answer(ForbiddenError("no", channel="a"))
    assert json.loads(body) == {"error": {"code": "forbidden", "message": "no", "channel": "a"}}
    assert (status, headers) == (403, {"Content-Type": "application/json"})
    body, status, headers = answer(UnauthorizedError("who?"))
    assert json.loads(body) == {"error": {"code": "unauthorized", "message": "who?"}}
    assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize(("seconds", "wanted"), [(0.0, "1"), (1.0, "1"), (1.01, "2"), (4.5, "5")])
def test_retry_after_is_rounded_up(seconds: float, wanted: str) -> None:
    error = RateLimitedError("too much")
    error.retry_after = seconds
    assert answer(error)[1:] == (429, {"Content-Type": "application/json", "Retry-After": wanted})
    assert answer(DatabaseUnavailableError("away"))[2]["Retry-After"] == "1"


@pytest.mark.parametrize(
    ("status", "code"), [(400, "invalid_request"), (408, "invalid_request"), (411, "invalid_request"),
                         (413, "payload_too_large")],
)  # fmt: skip
def test_body_error_becomes_an_error_code(status: int, code: str) -> None:
    found, error = of_body(BodyError(f"{status} WHATEVER", "it is wrong"))
    assert (found, error.code, error.message) == (status, code, "it is wrong")
    assert status in BODY_STATUSES or status in STATUSES.values()
