"""What a server's answer says went wrong, as an error of this package."""

from typing import Any

from socketio_pg.core.errors import (
    AuthenticationUnavailableError,
    DatabaseUnavailableError,
    ForbiddenError,
    InvalidChannelError,
    InvalidRequestError,
    PayloadTooLargeError,
    SocketIOPGError,
    UnauthorizedError,
)

_ERRORS: dict[str, type[SocketIOPGError]] = {
    error.code: error
    for error in (
        InvalidRequestError, InvalidChannelError, PayloadTooLargeError, DatabaseUnavailableError,
        UnauthorizedError, AuthenticationUnavailableError, ForbiddenError,
    )
}  # fmt: skip
#: Worth another try, later. So is "internal" for what has worked before.
TRANSIENT = frozenset({"database_unavailable", "rate_limited", "no_answer"})


def error_of(answer: Any, channel: str | None = None) -> tuple[str, SocketIOPGError] | None:
    """The error that ``answer`` is, with its wire code; None when it is none."""
    if isinstance(answer, dict) and answer.get("ok") is True:
        return None
    error = answer.get("error") if isinstance(answer, dict) else None
    error = error if isinstance(error, dict) else {}
    code, message = str(error.get("code", "internal")), str(error.get("message", "the server did not say why"))
    return code, as_error(code, message, channel)


def as_error(code: str, message: str, channel: str | None = None) -> SocketIOPGError:
    kind = _ERRORS.get(code)
    if kind is not None:
        return kind(message, channel=channel)
    return SocketIOPGError(message if code == "internal" else f"{code}: {message}", channel=channel)
