"""Messages: JSON value → NOTIFY payload → message → Socket.IO frame. No I/O.

JSON text from PostgreSQL is passed on unchanged (that of a NOTIFY is validated first): it is never decoded and encoded
again for the clients, so numbers of any size and the order of keys survive.
"""

import decimal
import gc
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import orjson

from socketio_pg.core.errors import InvalidRequestError, PayloadTooLargeError
from socketio_pg.core.meta import Meta, parse_meta

#: PostgreSQL manual, NOTIFY: "In the default configuration it must be shorter than 8000 bytes."
MAX_NOTIFY_BYTES = 7999
#: Longer texts are parsed without the garbage collector.
COLLECTED_CHARACTERS = 50_000
#: The maximum nesting of JSON: that of orjson. Python's parser has a lower limit before Python 3.12, since then one of
#: 1,500 to over 20,000 levels that depends on the release.
MAX_LEVELS = 1024
_PYTHON_HAS_LOWER_LIMIT = sys.version_info < (3, 12)


class Position(TypedDict):
    """A place in the log. Positions are comparable only within one epoch."""

    epoch: str
    position: int


@dataclass(slots=True)
class EncodedMessage:
    """One message of a channel, shared by all its receivers: do not change it. ``payload_json`` is strict JSON text.

    Not frozen: that takes 0.5 us longer to make, a tenth of the CPU time that a node spends on a message of the log.

    ``position`` and ``published_at`` (ISO 8601, UTC) are set for a message of the log, None for one of NOTIFY.
    ``outbox_id`` is the id that a message of the log had in the outbox; None if a server of an older version moved it.
    ``meta`` is None for most messages.
    """

    channel: str
    payload_json: str
    position: int | None = None
    published_at: str | None = None
    outbox_id: int | None = None
    meta: Meta | None = None

    @property
    def exclude(self) -> str | None:
        """The Socket.IO id of a client that does not get the message; None for most messages."""
        return None if self.meta is None else self.meta.exclude

    def payload(self) -> Any:
        """Return the payload as a Python value, decoded at each call as by :func:`loads`."""
        return loads(self.payload_json)

    def sender(self) -> dict[str, Any] | None:
        """Return the client that has published the message, with its claims, decoded at each call; None without one."""
        return None if self.meta is None or self.meta.sender is None else json.loads(self.meta.sender)

    def to_wire(self) -> dict[str, Any]:
        """Return the argument of the Socket.IO event ``event``; the payload's text is inserted unchanged."""
        wire: dict[str, Any] = {"channel": self.channel, "payload": orjson.Fragment(self.payload_json)}
        if self.meta is not None:
            wire |= self.meta.to_wire()
        if self.position is not None:
            wire |= {"position": self.position, "published_at": self.published_at}
        return wire


def encode_payload(payload: object) -> str:
    """Return ``payload``, any JSON value, as compact JSON text.

    Raises :class:`InvalidRequestError` for values that strict JSON does not allow (NaN, infinities, lone
    surrogates, binary data, circular references).
    """
    try:
        text = dumps_strict(payload)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"payload must be a JSON value: {_reason(error)}") from None
    if not is_strict_json(text):
        raise InvalidRequestError("payload must be a JSON value: it is nested too deeply or a number is too large")
    return text


def check_size(payload_json: str, limit: int = MAX_NOTIFY_BYTES) -> None:
    """Raise :class:`PayloadTooLargeError` when the text has over ``limit`` bytes of UTF-8."""
    size = len(payload_json.encode())
    if size > limit:
        carrier = "NOTIFY carries" if limit == MAX_NOTIFY_BYTES else "the log accepts"
        raise PayloadTooLargeError(f"payload has {size} bytes of UTF-8 as JSON; {carrier} at most {limit}")


def decode_notification(channel: str, text: str) -> EncodedMessage:
    """Return the message of a NOTIFY. A payload that is not strict JSON becomes a JSON string.

    Metadata follows a NUL, which no text of PostgreSQL has: see :mod:`socketio_pg.postgres.companions`.
    """
    text, _, meta = text.partition("\0")
    payload = text if is_strict_json(text) or _has_large_numbers(text) else dumps_strict(text)
    return EncodedMessage(channel, payload, meta=parse_meta(meta) if meta else None)


def from_log(
    position: int,
    channel: str,
    published_at: str,
    text: str,
    outbox_id: int | None = None,
    meta: str | None = None,
) -> EncodedMessage:
    """Return a message of the log. ``text`` is that of a ``jsonb``: valid JSON, whatever its numbers and depth are."""
    return EncodedMessage(channel, text, position, published_at, outbox_id, None if meta is None else parse_meta(meta))


def parse_leniently(text: str, **options: Any) -> Any:
    """Parse JSON as :func:`json.loads` does with these options. Raises RecursionError over 1,024 levels, too."""
    value = json.loads(text, **options)
    if not _PYTHON_HAS_LOWER_LIMIT and text.count("[") + text.count("{") > MAX_LEVELS and _is_deep(value):
        raise RecursionError(f"JSON of over {MAX_LEVELS} levels")
    return value


def _is_deep(value: Any) -> bool:
    """Return whether a JSON value has over ``MAX_LEVELS`` levels. Not recursive, because senders choose the depth."""
    level: list[Any] = [[value]]
    for _ in range(MAX_LEVELS + 1):
        containers = [one.values() if type(one) is dict else one for one in level]
        level = [item for items in containers for item in items if type(item) is list or type(item) is dict]
        if not level:
            return False
    return True


def loads(text: str, parse_float: Callable[[str], Any] = float) -> Any:
    """Return JSON text as a Python value. Integers are exact; ``parse_float`` makes the other numbers.

    An integer that int() refuses, by default one of more than 4,300 digits, becomes a :class:`decimal.Decimal`. Over
    about 990 levels, integers over 64 bits become floats. Raises ValueError over 1,024 levels, and for other text.
    """
    try:
        try:
            return parse_leniently(text, parse_float=parse_float)
        except json.JSONDecodeError:
            raise
        except ValueError:  # from int()
            return parse_leniently(text, parse_float=parse_float, parse_int=_exact_integer)
    except RecursionError:
        return orjson.loads(text)


def _exact_integer(digits: str) -> int | decimal.Decimal:
    try:
        return int(digits)
    except ValueError:
        return decimal.Decimal(digits)


def _has_large_numbers(text: str) -> bool:
    """Return whether ``text`` would be strict JSON if its numbers were smaller."""
    try:
        dumps_strict(parse_leniently(text, parse_int=str, parse_float=str, parse_constant=_reject)).encode()
    except (TypeError, ValueError, RecursionError):
        return False
    return True


#: JSON text up to the end of the next number (the group), or to the end of the next string or its thousandth escape:
#: a regular expression needs memory for each escape, and does not pause.
_TOKEN = re.compile(r'[^-"0-9]*(?:(-?[0-9][-+.0-9eE]*)|"[^"\\]*(?:\\.[^"\\]*){0,1000}("?)|\Z)')
_ESCAPES = re.compile(r'(?:\\.[^"\\]*){0,1000}')
#: Characters between two pauses: about a millisecond.
_WITHOUT_PAUSE = 5_000


def with_numbers_as_strings(text: str, pause: Callable[[], None]) -> str:
    """Return JSON text with each number as a string of the same characters. Calls ``pause()`` every millisecond."""
    parts: list[str] = []
    written = read = paused = 0
    while read < len(text):
        for found in _TOKEN.finditer(text, read):
            read = found.end()
            if found[1] is not None:
                parts += (text[written : found.start(1)], '"', found[1], '"')
                written = read
            if read - paused > _WITHOUT_PAUSE:
                paused = read
                pause()
            if found[2] == "":
                read = _end_of_string(text, read, pause)
                break
    return "".join(parts) + text[written:]


def _end_of_string(text: str, read: int, pause: Callable[[], None]) -> int:
    """Return the end of a string that is read up to ``text[read]``: an escape, or the closing quote."""
    while text[read] != '"':
        found = _ESCAPES.match(text, read)
        assert found is not None
        assert found.end() > read, "this is not JSON"
        read = found.end()
        pause()
    return read + 1


def is_strict_json(text: str) -> bool:
    """Return whether every JSON parser accepts ``text``: RFC 8259, at most 1,024 levels, numbers in the range of a
    double, no NaN or lone surrogates."""
    try:
        if len(text) < COLLECTED_CHARACTERS:
            orjson.loads(text)
        else:
            parse_strict_json(text)
    except orjson.JSONDecodeError:
        return False
    return True


def parse_rounded(text: str) -> Any:
    """Parse JSON; numbers beyond 64 bits are rounded to floats, infinite ones too.

    Returns ``text`` itself, a string, if it is nested too deeply. Raises ValueError for other text.
    """
    try:
        return parse_strict_json(text)
    except orjson.JSONDecodeError:
        try:
            return parse_leniently(text, parse_int=_rounded_integer)
        except RecursionError:
            return text


def _rounded_integer(digits: str) -> int | float:
    # Up to 20 characters, as 64 bits have; int() and float() take longer texts, but only float() those of any length.
    number = int(digits) if len(digits) <= 20 else float(digits)
    return number if -(2**63) <= number < 2**64 else float(number)


def parse_strict_json(text: str) -> Any:
    """Parse strict JSON; integers over 64 bits lose digits. Raises ValueError for other text."""
    if len(text) < COLLECTED_CHARACTERS or not gc.isenabled():
        return orjson.loads(text)
    # The garbage collector would visit hundreds of thousands of new lists again and again: 70 ms a megabyte, not 16.
    gc.disable()
    try:
        return orjson.loads(text)
    finally:
        gc.enable()


def dumps_strict(value: object) -> str:
    """Return ``value`` as compact strict JSON text, without escaping non-ASCII characters.

    Raises TypeError or ValueError for values that are not JSON, RecursionError for nesting that is too deep.
    """
    # Not orjson: it writes NaN as null, and rejects integers over 64 bits.
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def quick_json(value: object) -> str | None:
    """Return ``value`` as text like :meth:`WireJSON.dumps`, in one pass; None for what needs a closer look.

    That is what is not JSON, binary data among it, integers over 64 bits, and keys that are not strings.
    """
    try:
        return orjson.dumps(value, default=_reject).decode()
    except TypeError:
        return None


class WireJSON:
    """The ``json`` module of python-socketio's packets: supports :class:`orjson.Fragment`, writes strict JSON."""

    @staticmethod
    def dumps(value: object, **_: object) -> str:
        text = quick_json(value)
        if text is None:
            # The standard library also writes integers over 64 bits, and keys that are not strings.
            text = dumps_strict(value)
            text.encode()  # a lone surrogate must fail here and not when it is sent
        return text

    #: Lenient on purpose: the event handlers find invalid values, and answer with the right error code.
    loads: Callable[..., Any] = staticmethod(json.loads)


def _reject(value: object) -> object:
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "it contains a lone surrogate"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if "Out of range float" in str(error):
        return "NaN and infinite numbers are not JSON"
    return str(error)
