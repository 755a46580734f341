"""Server-Sent Events (WHATWG HTML, section 9.2): messages and events as blocks of text. Pure, no I/O.

The bytes of a block are the same for all streams that get it.
"""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from socketio_pg.core.messages import EncodedMessage, WireJSON, parse_rounded

#: A comment: keeps the connection alive, and is no event.
COMMENT = b":\n\n"
#: The server's own events.
OWN_EVENTS = frozenset(("direct", "error", "gap", "live", "message", "open", "subscribed", "token_expiring"))
#: The maximum length of an event's name that a publisher chooses.
MAX_EVENT_NAME = 100

_LINE_BREAK = re.compile(rb"\r\n|\r|\n")


def block(data: bytes, event: str = "", cursor: str = "") -> bytes:
    """Return an event. ``event`` and ``cursor``, its id, have no line breaks; without ``event`` it is ``message``."""
    if b"\n" in data or b"\r" in data:
        data = _LINE_BREAK.sub(b"\ndata: ", data)
    head = f"id: {cursor}\n" if cursor else ""
    if event:
        head += f"event: {event}\n"
    return b"%bdata: %b\n\n" % (head.encode(), data)


def own_event(event: str, body: Mapping[str, Any], cursor: str = "") -> bytes:
    """Return one of the server's own events."""
    return block(WireJSON.dumps(body).encode(), event, cursor)


def move_cursor(cursor: str) -> bytes:
    """Return a block that sets the last event id of a client, and is no event for it."""
    return f"id: {cursor}\n\n".encode()


def retry(milliseconds: int) -> bytes:
    """Return a block that sets the time after which a client connects again."""
    return b"retry: %d\n\n" % milliseconds


def message_block(message: EncodedMessage, cursor: str, payload_json: str | None = None) -> bytes:
    """Return the event of a message, with another form of its payload if one is given."""
    wire = message.to_wire()
    if payload_json is not None:
        wire["payload"] = orjson.Fragment(payload_json)
    return block(orjson.dumps(wire), cursor=cursor)


def html_block(message: EncodedMessage, cursor: str) -> bytes | None:
    """Return the event that the publisher of HTML has chosen; None for a message that has none.

    Its payload is ``{"html": string, "event": string}``; ``event`` may be missing.
    """
    payload = parse_rounded(message.payload_json)
    if not isinstance(payload, dict) or not isinstance(payload.get("html"), str):
        return None
    event = payload.get("event")
    if event is not None and not is_event_name(event):
        return None
    return block(payload["html"].encode(), event or "", cursor)


def is_event_name(name: object) -> bool:
    """Return whether a publisher may choose this name for an event."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= MAX_EVENT_NAME
        and name.isprintable()
        and name == name.strip()
        and name not in OWN_EVENTS
    )
