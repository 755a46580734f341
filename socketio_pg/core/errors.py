"""All errors that this package raises. Each class has the code that clients see on the wire.

SocketIOPGError               internal
├── ConfigurationError        internal
├── InvalidRequestError       invalid_request
│   ├── InvalidChannelError   invalid_channel
│   ├── PayloadTooLargeError  payload_too_large
│   └── LogNotInstalledError  log_not_installed
│       └── UntrustedSchemaError  log_not_installed
├── UnauthorizedError         unauthorized
├── AuthenticationUnavailableError  authentication_unavailable
├── ForbiddenError            forbidden
├── RateLimitedError          rate_limited
├── TooManySubscriptionsError  too_many_subscriptions
├── TooManyRowsError          too_many_rows
├── FilterTooExpensiveError  filter_too_expensive
├── IdleTimeoutError          idle_timeout
├── EndedByServerError        ended_by_server
└── DatabaseError             internal
    ├── DatabaseRefusedError  database_unavailable
    └── DatabaseUnavailableError  database_unavailable
        ├── DatabaseTimeoutError  database_unavailable
        └── ClusterKeyError       database_unavailable
"""

from typing import ClassVar

from socketio_pg.core.references import public_text


class SocketIOPGError(Exception):
    """Base of all errors of this package.

    ``code`` is the error's name on the wire (docs/protocol.md), ``message`` one sentence that anyone may read.
    ``detail`` is for the operator, and takes its place in ``str()``: a text of PostgreSQL or another system, with names
    of hosts, files, roles or tables. Clients get a reference to the log line that has it.
    """

    code: ClassVar[str] = "internal"
    #: The pattern that the request named in place of a channel.
    pattern: str | None = None

    def __init__(self, message: str, *, channel: str | None = None, detail: str | None = None) -> None:
        super().__init__(message if detail is None else detail)
        self.message = message
        self.detail = detail
        self.channel = channel

    def to_wire(self) -> dict[str, str]:
        """Return the error as a client sees it: ``{"code", "message"}``. Logs the detail, if there is one."""
        return {"code": self.code, "message": public_text(self.message, self.detail)}


class ConfigurationError(SocketIOPGError):
    """A setting is wrong or missing. The message names the setting, the value and what is allowed."""


class InvalidRequestError(SocketIOPGError):
    """A request, or a part of it, violates the protocol."""

    code = "invalid_request"


class InvalidChannelError(InvalidRequestError):
    """A channel name breaks the rules of :mod:`socketio_pg.core.channels`."""

    code = "invalid_channel"


class PayloadTooLargeError(InvalidRequestError):
    """A payload has over 7,999 bytes of UTF-8 for NOTIFY, or over MAX_PAYLOAD for the log."""

    code = "payload_too_large"


class LogNotInstalledError(InvalidRequestError):
    """A request needs the log, but the database has no schema ``socketio_pg``, or an older version of it."""

    code = "log_not_installed"


class UntrustedSchemaError(LogNotInstalledError):
    """The schema ``socketio_pg``, or an object in it, belongs to a role that is not trusted; the log is not used."""

    detail: str

    def __init__(self, detail: str) -> None:
        super().__init__("the schema socketio_pg is not trusted", detail=detail)

    def to_wire(self) -> dict[str, str]:
        """Return the error as a client sees it. The detail is in the log already: `postgres/trust` logs it once."""
        return {"code": self.code, "message": self.message}


class UnauthorizedError(SocketIOPGError):
    """The client is not authenticated: its token is missing, invalid or expired."""

    code = "unauthorized"


class AuthenticationUnavailableError(SocketIOPGError):
    """A token cannot be verified at the moment, because the keys are unavailable. The token may be valid."""

    code = "authentication_unavailable"


class ForbiddenError(SocketIOPGError):
    """The client lacks the permission for this request."""

    code = "forbidden"


class RateLimitedError(SocketIOPGError):
    """A client sends requests too fast.

    ``cut_off``: the client ignored earlier errors and is to be disconnected. ``retry_after``: seconds until the same
    request is possible.
    """

    code = "rate_limited"
    cut_off = False
    retry_after = 1.0


class TooManySubscriptionsError(SocketIOPGError):
    """A client (MAX_SUBSCRIPTIONS), or all clients of the node together (MAX_CHANNELS), may have no more channels."""

    code = "too_many_subscriptions"


class TooManyRowsError(SocketIOPGError):
    """A live table has more rows than a client may get (LIVE_TABLE_ROWS, LIVE_TABLE_BYTES)."""

    code = "too_many_rows"


class FilterTooExpensiveError(SocketIOPGError):
    """A client's filters cost too much (MAX_FILTER_MILLISECONDS_PER_SECOND), or are too large together."""

    code = "filter_too_expensive"


class IdleTimeoutError(SocketIOPGError):
    """A client without subscriptions has sent nothing for too long (IDLE_TIMEOUT)."""

    code = "idle_timeout"


class EndedByServerError(SocketIOPGError):
    """The application or an operator has disconnected the client, or ended its subscription."""

    code = "ended_by_server"


class DatabaseError(SocketIOPGError):
    """PostgreSQL refused a statement; the connection still works.

    ``sqlstate`` is the error's code, if it has one (PostgreSQL manual, appendix A).
    """

    sqlstate: str | None = None


class DatabaseRefusedError(DatabaseError):
    """PostgreSQL refuses a statement because of its state, its configuration or a privilege, as on a standby.

    No bug, and not the fault of the request. The connection still works.
    """

    code = "database_unavailable"


class DatabaseUnavailableError(DatabaseError):
    """PostgreSQL is unreachable, did not answer in time, or closed the connection."""

    code = "database_unavailable"


class DatabaseTimeoutError(DatabaseUnavailableError):
    """PostgreSQL did not answer in time; the statement may have been executed or not."""


class ClusterKeyError(DatabaseUnavailableError):
    """This process has no cluster key yet, so it cannot send anything to other nodes."""


def encode(error: SocketIOPGError) -> dict[str, str | None]:
    """Return an error as another worker of the node gets it, with its detail."""
    return {
        "class": type(error).__name__,
        "message": error.message,
        "channel": error.channel,
        "detail": error.detail,
    }


def decode(encoded: dict[str, str | None]) -> SocketIOPGError:
    """Return the error that :func:`encode` has encoded."""
    classes = {found.__name__: found for found in _all_classes()}
    error = SocketIOPGError.__new__(classes[str(encoded["class"])])
    # Some classes have arguments of their own.
    SocketIOPGError.__init__(error, str(encoded["message"]), channel=encoded["channel"], detail=encoded["detail"])
    return error


def wire_codes() -> set[str]:
    """Return all error codes that can appear on the wire; tests check the docs against them."""
    return {found.code for found in _all_classes()}


def _all_classes() -> list[type[SocketIOPGError]]:
    classes = [SocketIOPGError]
    for found in classes:
        classes.extend(found.__subclasses__())
    return classes
