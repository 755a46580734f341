"""Publications: the fields of a request to publish, and of its answer. No I/O."""

import contextlib
import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from socketio_pg.core.channels import validate_channel
from socketio_pg.core.errors import InvalidRequestError, SocketIOPGError
from socketio_pg.core.messages import Position
from socketio_pg.core.meta import validate_exclude, validate_traceparent

#: The maximum number of messages in one publish request.
MAX_BATCH = 1000
#: The maximum bytes of UTF-8 of a publication's id, and the characters that it may not have: as in postgres/sql.
MAX_ID_BYTES = 64
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Publication:
    """A message to publish. ``payload`` is any JSON value.

    ``durable``: through the log (True) or with NOTIFY (False); None: through the log where one is installed, in the
    channels of DURABLE_CHANNELS. The same ``id`` on a channel within five minutes is published once. ``exclude``: the
    Socket.IO id of a client that does not get the message. ``traceparent``: that of W3C Trace Context. ``sender``: the
    client that publishes, JSON text of an object, set by the server.
    """

    channel: str
    payload: Any
    durable: bool | None = None
    id: str | None = None
    exclude: str | None = None
    traceparent: str | None = None
    sender: str | None = None


@dataclass(slots=True)
class Published:
    """The result of a publication that is committed. Do not change it.

    ``durable``: it went through the log. ``place`` is then its place there; None if nobody waited for it, or it is not
    known yet: ``waited`` says which. ``duplicate``: its id was published before, and ``place`` is that of the first
    message.
    """

    channel: str
    durable: bool
    waited: bool = False
    place: Position | None = None
    duplicate: bool = False

    @property
    def epoch(self) -> str | None:
        """The epoch of :attr:`position`."""
        return None if self.place is None else self.place["epoch"]

    @property
    def position(self) -> int | None:
        """The message's position in the log, if it is known."""
        return None if self.place is None else self.place["position"]

    def to_wire(self) -> dict[str, Any]:
        """Return the body of the event ``published`` (docs/protocol.md)."""
        wire: dict[str, Any] = {"channel": self.channel}
        if self.durable and self.waited:
            wire |= {"epoch": self.epoch, "position": self.position}
        return wire | {"duplicate": True} if self.duplicate else wire


def validate_id(id: object) -> str:
    """Return a publication's id, unchanged. Raises :class:`InvalidRequestError` for anything that is none."""
    return validate_name(id, "id")


def validate_name(value: object, field: str) -> str:
    """Return the value of ``field``, an id or something like it. Raises :class:`InvalidRequestError` if it is none."""
    problem = f"{field} must be a string of 1 to {MAX_ID_BYTES} bytes of UTF-8 without control characters"
    if not isinstance(value, str) or not value or _CONTROL.search(value):
        raise InvalidRequestError(problem)
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidRequestError(problem) from None
    if size > MAX_ID_BYTES:
        raise InvalidRequestError(f"{problem}: this one has {size} bytes")
    return value


def requested_publication(request: Mapping[str, Any]) -> Publication:
    """Validate ``request``, ``{channel, payload, durable?, id?, exclude?, traceparent?}``.

    Raises :class:`InvalidRequestError` or :class:`InvalidChannelError`.
    """
    channel = validate_channel(request.get("channel"))
    if "payload" not in request:
        raise InvalidRequestError("payload is missing", channel=channel)
    if _boolean(request, "ephemeral", channel):
        raise InvalidRequestError("ephemeral messages are published over Socket.IO only", channel=channel)
    id, exclude, traceparent = request.get("id"), request.get("exclude"), request.get("traceparent")
    return Publication(
        channel,
        request["payload"],
        _boolean(request, "durable", channel),
        None if id is None else validate_id(id),
        None if exclude is None else validate_exclude(exclude),
        None if traceparent is None else validate_traceparent(traceparent),
    )


def wants_echo(request: Mapping[str, Any]) -> bool:
    """Return whether a client that publishes wants its own message, too. Raises :class:`InvalidRequestError`."""
    return _boolean(request, "echo") is not False


def requested_wait(request: Mapping[str, Any]) -> bool:
    """Return whether a request wants to wait for positions. Raises :class:`InvalidRequestError`."""
    return _boolean(request, "wait") is not False


def requested_publications(messages: object) -> Sequence[Publication]:
    """Validate a list of 1 to :data:`MAX_BATCH` such requests; an error names the index of the message."""
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_BATCH:
        raise InvalidRequestError(f"messages must be a list of 1 to {MAX_BATCH} objects")
    found = []
    for index, message in enumerate(messages):
        with naming_message(index):
            if not isinstance(message, dict):
                raise InvalidRequestError("not an object")
            found.append(requested_publication(message))
    return found


@contextlib.contextmanager
def naming_message(index: int) -> Iterator[None]:
    """Prefix the message of an error raised in the body with ``messages[index]``."""
    try:
        yield
    except SocketIOPGError as error:
        # A copy, because other callers that wait for the same result get the same error object.
        named = copy.copy(error)
        named.message = f"messages[{index}]: {error.message}"
        raise named from error


def _boolean(request: Mapping[str, Any], name: str, channel: str | None = None) -> bool | None:
    value = request.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequestError(f"{name} must be true or false", channel=channel)
    return value
