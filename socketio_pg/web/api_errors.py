"""HTTP answers for errors: the status of each code, headers, and body. Pure, no I/O."""

import math

from werkzeug.exceptions import HTTPException, MethodNotAllowed

from socketio_pg.core.errors import InvalidRequestError, PayloadTooLargeError, RateLimitedError, SocketIOPGError
from socketio_pg.core.messages import WireJSON
from socketio_pg.engine.polling import BodyError

#: The status of each code (docs/protocol.md, "Error codes") that HTTP answers can have.
STATUSES = {
    "invalid_request": 400,
    "invalid_channel": 400,
    "log_not_installed": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "payload_too_large": 413,
    "rate_limited": 429,
    "filter_too_expensive": 429,
    "internal": 500,
    "authentication_unavailable": 503,
    "database_unavailable": 503,
}
#: Codes that only sockets have.
ONLY_SOCKETS = {"too_many_subscriptions", "too_many_rows", "idle_timeout", "ended_by_server"}
#: Further statuses of HTTP requests with the code ``invalid_request``.
BODY_STATUSES = {
    408: "the body did not arrive in time",
    411: "neither Content-Length nor chunked",
    415: "not application/json",
}
#: Further statuses of requests that match no operation, also with the code ``invalid_request``.
ROUTING_STATUSES = {404: "no such path", 405: "the path does not support this method"}


class NotJSONError(InvalidRequestError):
    """The request's Content-Type is not JSON."""

    status = 415


def of_body(problem: BodyError) -> tuple[int, SocketIOPGError]:
    """Return the status and the error for a body that could not be read."""
    status = int(problem.status[:3])
    kind = PayloadTooLargeError if status == STATUSES["payload_too_large"] else InvalidRequestError
    return status, kind(str(problem))


def of_http(problem: HTTPException) -> tuple[int, SocketIOPGError]:
    """Return the status and the error for an exception of werkzeug, such as one for an unknown path."""
    status = problem.code or 500
    if status >= 500:
        return status, SocketIOPGError("the server failed to handle this")
    kind = PayloadTooLargeError if status == STATUSES["payload_too_large"] else InvalidRequestError
    if isinstance(problem, MethodNotAllowed) and problem.valid_methods:
        return status, kind(f"this path supports only {', '.join(sorted(problem.valid_methods))}")
    return status, kind(ROUTING_STATUSES.get(status) or problem.description or problem.name)


def answer(error: SocketIOPGError, status: int | None = None) -> tuple[bytes, int, dict[str, str]]:
    """Return body, status and headers for an error; ``status`` overrides the status of the error's code."""
    wire = error.to_wire() | ({} if error.channel is None else {"channel": error.channel})
    status = status or STATUSES[error.code]
    headers = {"Content-Type": "application/json"}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    elif status in (429, 503):
        seconds = error.retry_after if isinstance(error, RateLimitedError) else 1.0
        headers["Retry-After"] = str(max(1, math.ceil(seconds)))
    return WireJSON.dumps({"error": wire}).encode(), status, headers
