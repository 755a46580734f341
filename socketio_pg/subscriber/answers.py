"""Reads a server's answers: errors by their wire codes, and messages that cannot be decoded. Pure, no I/O."""

import json
import re
from typing import Any

from socketio_pg.core.errors import (
    AuthenticationUnavailableError,
    DatabaseUnavailableError,
    EndedByServerError,
    FilterTooExpensiveError,
    ForbiddenError,
    InvalidChannelError,
    InvalidRequestError,
    LogNotInstalledError,
    PayloadTooLargeError,
    SocketIOPGError,
    UnauthorizedError,
)

_ERRORS: dict[str, type[SocketIOPGError]] = {
    error.code: error
    for error in (
        InvalidRequestError, InvalidChannelError, PayloadTooLargeError, LogNotInstalledError, DatabaseUnavailableError,
        UnauthorizedError, AuthenticationUnavailableError, ForbiddenError,
        FilterTooExpensiveError, EndedByServerError,
    )
}  # fmt: skip
#: Codes of errors that are retried later. "internal" is retried as well for a subscription that worked before.
TRANSIENT = frozenset({"database_unavailable", "rate_limited", "no_answer"})

#: The beginning of the server's event ``event``, up to the payload; a text, or a bracket, in JSON.
_BEGINNING = re.compile(r'2\["event",\{"channel":("(?:[^"\\]|\\.)*"),"payload":')
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')


def answer_error(answer: Any, channel: str | None = None) -> tuple[str, SocketIOPGError] | None:
    """Return the wire code and the error that ``answer`` reports, or None for a success."""
    if isinstance(answer, dict) and answer.get("ok") is True:
        return None
    error = answer.get("error") if isinstance(answer, dict) else None
    error = error if isinstance(error, dict) else {}
    code, message = str(error.get("code", "internal")), str(error.get("message", "the server gave no reason"))
    return code, as_error(code, message, channel)


def as_error(code: str, message: str, channel: str | None = None) -> SocketIOPGError:
    """Return the error of a wire code."""
    kind = _ERRORS.get(code)
    if kind is not None:
        return kind(message, channel=channel)
    return SocketIOPGError(message if code == "internal" else f"{code}: {message}", channel=channel)


def refusal_error(body: Any) -> SocketIOPGError | None:
    """Return the error of a ``connect_error`` that is about the token, or None."""
    refusal = body.get("data") if isinstance(body, dict) else None
    if isinstance(refusal, dict):
        error = as_error(str(refusal.get("code")), str(refusal.get("message")))
        if isinstance(error, (UnauthorizedError, AuthenticationUnavailableError)):
            return error
    return None


def place_of_undecodable(packet: str) -> dict[str, Any] | None:
    """Return the fields of a message whose payload cannot be decoded, without the payload.

    ``packet`` is a Socket.IO packet. Returns None if it is something else.
    """
    beginning = _BEGINNING.match(packet)
    if beginning is None:
        return None
    level, end = 0, beginning.end()
    for token in _TOKEN.finditer(packet, end):
        level += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if level <= 0:
            # Below zero: the end of the message. Payloads without brackets can be decoded.
            end = token.end() if level == 0 else token.start()
            break
    return {"channel": json.loads(beginning[1]), **_fields(packet[end:])}


def _fields(rest: str) -> dict[str, Any]:
    """Return the fields of a message that follow its payload: ``,"position":7,…}`` and the end of the packet."""
    try:
        fields, _ = json.JSONDecoder().raw_decode("{" + rest.lstrip(","))
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}
