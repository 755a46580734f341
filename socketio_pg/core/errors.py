"""Every error this package raises. Each class carries the code that it has on the wire.

SocketIOPGError               internal
├── ConfigurationError        internal
├── InvalidRequestError       invalid_request
│   ├── InvalidChannelError   invalid_channel
│   ├── PayloadTooLargeError  payload_too_large
│   └── LogNotInstalledError  invalid_request
├── UnauthorizedError         unauthorized
├── AuthenticationUnavailableError  authentication_unavailable
├── ForbiddenError            forbidden
├── RateLimitedError          rate_limited
├── TooManySubscriptionsError  too_many_subscriptions
├── IdleTimeoutError          idle_timeout
└── DatabaseError             internal
    └── DatabaseUnavailableError  database_unavailable
        └── DatabaseTimeoutError  database_unavailable
"""

from typing import ClassVar


class SocketIOPGError(Exception):
    """Base of all errors of this package.

    ``code`` is the error's name on the wire (docs/protocol.md), ``message`` one sentence that may be
    shown to the client that caused the error.
    """

    code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, channel: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.channel = channel

    def to_wire(self) -> dict[str, str]:
        """The error as a Socket.IO client sees it: ``{"code", "message"}``."""
        return {"code": self.code, "message": self.message}


class ConfigurationError(SocketIOPGError):
    """A setting is wrong or missing. The message names the setting, the value and what is allowed."""


class InvalidRequestError(SocketIOPGError):
    """A request, or a part of it, is not what the protocol asks for."""

    code = "invalid_request"


class InvalidChannelError(InvalidRequestError):
    """A channel name breaks the rules of :mod:`socketio_pg.channels`."""

    code = "invalid_channel"


class PayloadTooLargeError(InvalidRequestError):
    """A payload does not fit: over 7,999 bytes of UTF-8 for NOTIFY, over MAX_PAYLOAD for the log."""

    code = "payload_too_large"


class LogNotInstalledError(InvalidRequestError):
    """Something was asked of the log, and the database has no schema ``socketio_pg``."""


class UnauthorizedError(SocketIOPGError):
    """It is not known who the client is: the token is missing, wrong or has expired."""

    code = "unauthorized"


class AuthenticationUnavailableError(SocketIOPGError):
    """A token cannot be verified at the moment: the keys cannot be had. The token may be in order."""

    code = "authentication_unavailable"


class ForbiddenError(SocketIOPGError):
    """Who the client is may be known; this it may not do."""

    code = "forbidden"


class RateLimitedError(SocketIOPGError):
    """A client asks for too much in too short a time. ``cut_off``: it has been told so often enough.

    ``retry_after``: seconds after which the same is possible.
    """

    code = "rate_limited"
    cut_off = False
    retry_after = 1.0


class TooManySubscriptionsError(SocketIOPGError):
    """A client subscribes to as many channels as it may already (MAX_SUBSCRIPTIONS)."""

    code = "too_many_subscriptions"


class IdleTimeoutError(SocketIOPGError):
    """A client that subscribes to nothing has sent nothing for too long (IDLE_TIMEOUT)."""

    code = "idle_timeout"


class DatabaseError(SocketIOPGError):
    """PostgreSQL refused a statement while the connection is in order.

    ``sqlstate`` is its code where there is one (manual, appendix A).
    """

    sqlstate: str | None = None


class DatabaseUnavailableError(DatabaseError):
    """PostgreSQL cannot be reached, did not answer in time, or hung up."""

    code = "database_unavailable"


class DatabaseTimeoutError(DatabaseUnavailableError):
    """PostgreSQL did not answer in time; what was asked of it may have happened or not."""


def wire_codes() -> set[str]:
    """All error codes that can appear on the wire; the docs are checked against it."""
    codes, classes = set(), [SocketIOPGError]
    while classes:
        current = classes.pop()
        codes.add(current.code)
        classes.extend(current.__subclasses__())
    return codes
