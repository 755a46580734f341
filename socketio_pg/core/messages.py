"""Messages: JSON value → NOTIFY payload → message → Socket.IO frame. Pure, no I/O.

JSON text that PostgreSQL brought is checked once and then travels as it is: it is never parsed and
written again for the clients, so numbers of any size and the order of keys survive.
"""

import contextlib
import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import orjson

from socketio_pg.core.channels import validate_channel
from socketio_pg.core.errors import InvalidRequestError, PayloadTooLargeError, SocketIOPGError

#: PostgreSQL manual, NOTIFY: "In the default configuration it must be shorter than 8000 bytes."
MAX_NOTIFY_BYTES = 7999


class Position(TypedDict):
    """A place in the log. Positions are comparable only within one epoch."""

    epoch: str
    position: int


@dataclass(frozen=True, slots=True)
class EncodedMessage:
    """One message of a channel. ``payload_json`` is strict JSON text.

    ``position`` and ``published_at`` (ISO 8601, UTC) are those of a message of the log, None for one of NOTIFY.
    """

    channel: str
    payload_json: str
    position: int | None = None
    published_at: str | None = None

    def payload(self) -> Any:
        """The payload as a Python value (a new one at each call)."""
        try:
            return json.loads(self.payload_json)
        except RecursionError:
            # Nested more deeply than Python parses by itself; orjson does, but integers over 64 bits lose digits.
            return orjson.loads(self.payload_json)

    def to_wire(self) -> dict[str, Any]:
        """The argument of the Socket.IO event ``event``; the payload's text goes in as it is."""
        wire: dict[str, Any] = {"channel": self.channel, "payload": orjson.Fragment(self.payload_json)}
        if self.position is not None:
            wire |= {"position": self.position, "published_at": self.published_at}
        return wire


def encode_payload(payload: object) -> str:
    """``payload``, any JSON value, as compact JSON text.

    Raises :class:`InvalidRequestError` for what strict JSON cannot carry (NaN, infinities, lone
    surrogates, binary data, endless nesting).
    """
    try:
        text = dumps_strict(payload)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"payload must be a JSON value: {_reason(error)}") from None
    if not is_strict_json(text):
        raise InvalidRequestError("payload must be a JSON value: it is nested too deeply or a number is too large")
    return text


def check_size(payload_json: str, most: int = MAX_NOTIFY_BYTES) -> None:
    """Raise :class:`PayloadTooLargeError` when the text has over ``most`` bytes of UTF-8."""
    size = len(payload_json.encode())
    if size > most:
        carrier = "NOTIFY carries" if most == MAX_NOTIFY_BYTES else "the log takes"
        raise PayloadTooLargeError(f"payload has {size} bytes of UTF-8 as JSON; {carrier} at most {most}")


def decode_notification(channel: str, text: str) -> EncodedMessage:
    """The message that a NOTIFY carried. A payload that is not strict JSON arrives as a JSON string."""
    return EncodedMessage(channel, text if is_strict_json(text) else dumps_strict(text))


def from_log(position: int, channel: str, published_at: str, text: str) -> EncodedMessage:
    """A message of the log. ``text`` is PostgreSQL's ``jsonb``; what strict JSON cannot carry arrives as a string."""
    return EncodedMessage(channel, text if is_strict_json(text) else dumps_strict(text), position, published_at)


def is_strict_json(text: str) -> bool:
    """Whether every JSON parser will take ``text``: RFC 8259, no NaN, no lone surrogates, at most 1,024 levels."""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def dumps_strict(value: object) -> str:
    """``value`` as compact strict JSON text, with non-ASCII characters as they are.

    Raises TypeError or ValueError for what JSON cannot carry, RecursionError for endless nesting.
    """
    # Not orjson: it writes NaN as null, and refuses integers over 64 bits.
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


class WireJSON:
    """The ``json`` module of python-socketio's packets: knows :class:`orjson.Fragment`, writes strict JSON."""

    @staticmethod
    def dumps(value: object, **_: object) -> str:
        try:
            return orjson.dumps(value, default=_refuse_nothing).decode()
        except TypeError:
            # Integers over 64 bits, keys that are not strings: what the standard library takes.
            text = dumps_strict(value)
            text.encode()  # a lone surrogate must fail here and not when it is sent
            return text

    #: Lenient on purpose: what is wrong inside is found by our handlers, which can answer it with its code.
    loads: Callable[..., Any] = staticmethod(json.loads)


def _refuse_nothing(value: object) -> object:
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "it contains a lone surrogate"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if "Out of range float" in str(error):
        return "NaN and infinite numbers are not JSON"
    return str(error)


#: Messages that are published together at most.
MAX_TOGETHER = 1000


@dataclass(frozen=True, slots=True)
class Publication:
    """``payload`` is any JSON value. ``durable``: through the log, not through it, or (None) as the settings say."""

    channel: str
    payload: Any
    durable: bool | None = None


def requested_publication(request: Mapping[str, Any]) -> Publication:
    """What ``request``, ``{channel, payload, durable?}``, asks for.

    Raises :class:`InvalidRequestError` or :class:`InvalidChannelError`.
    """
    channel = validate_channel(request.get("channel"))
    if "payload" not in request:
        raise InvalidRequestError("payload is missing", channel=channel)
    durable = request.get("durable")
    if durable is not None and not isinstance(durable, bool):
        raise InvalidRequestError("durable must be true or false", channel=channel)
    return Publication(channel, request["payload"], durable)


def requested_publications(messages: object) -> Sequence[Publication]:
    """The same of each of ``messages``, a list of 1 to :data:`MAX_TOGETHER` such objects; an error says of which."""
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_TOGETHER:
        raise InvalidRequestError(f"messages must be a list of 1 to {MAX_TOGETHER} objects")
    found = []
    for index, message in enumerate(messages):
        with naming_message(index):
            if not isinstance(message, dict):
                raise InvalidRequestError("this is no object")
            found.append(requested_publication(message))
    return found


@contextlib.contextmanager
def naming_message(index: int) -> Iterator[None]:
    """What the body raises is about ``messages[index]``, and says so."""
    try:
        yield
    except SocketIOPGError as error:
        # A copy: others may be waiting for the same answer, and get the same error.
        told = copy.copy(error)
        told.message = f"messages[{index}]: {error.message}"
        raise told from error
