"""Metadata of a message beside its payload: the client that sent it, its trace, a client that does not get it. No I/O.

Only a server sets the sender; the others are the publisher's choice.
"""

import functools
import json
import re
from dataclasses import dataclass
from typing import Any

import orjson

from socketio_pg.core.errors import InvalidRequestError

#: The maximum bytes of UTF-8 of a sender as JSON.
MAX_SENDER_BYTES = 1024
#: The channel of NOTIFY whose sealed texts have the metadata of the notification that follows directly.
META_CHANNEL = "socketio_pg_meta"

#: W3C Trace Context, section 3.2. Versions after 00 may have more fields at the end. As in postgres/sql.
_IDS = "(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
_TRACEPARENT = re.compile(f"00-{_IDS}|(?!00|ff)[0-9a-f]{{2}}-{_IDS}(?:-[!-~]{{0,72}})?")
#: The id of a Socket.IO client.
_SID = re.compile(r"[!-~]{1,64}")


@dataclass(frozen=True, slots=True)
class Meta:
    """``sender``: the field `from` of the wire, JSON text of an object. ``exclude``: a client's Socket.IO id."""

    sender: str | None = None
    traceparent: str | None = None
    exclude: str | None = None

    @property
    def size(self) -> int:
        """About the number of characters on the wire."""
        return len(self.sender or "") + len(self.traceparent or "") + 30

    def to_json(self) -> str:
        """Return all of it as JSON text, as in the columns ``meta``."""
        fields = {"traceparent": self.traceparent, "exclude": self.exclude}
        found: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
        if self.sender is not None:
            found["from"] = orjson.Fragment(self.sender)
        return orjson.dumps(found).decode()

    def to_wire(self) -> dict[str, Any]:
        """Return the fields of the event ``event``."""
        wire: dict[str, Any] = {}
        if self.sender is not None:
            wire["from"] = orjson.Fragment(self.sender)
        if self.traceparent is not None:
            wire["traceparent"] = self.traceparent
        return wire


@functools.lru_cache(maxsize=1000)
def parse_meta(text: str) -> Meta | None:
    """Return the metadata that :meth:`Meta.to_json` or PostgreSQL has written; None if there is nothing to know.

    Raises ValueError for other text.
    """
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("metadata is not an object")
    sender, traceparent, exclude = (found.get(name) for name in ("from", "traceparent", "exclude"))
    meta = Meta(
        # Not orjson, which rounds integers over 64 bits.
        json.dumps(sender, ensure_ascii=False, separators=(",", ":")) if isinstance(sender, dict) else None,
        traceparent if isinstance(traceparent, str) else None,
        exclude if isinstance(exclude, str) else None,
    )
    return None if meta == Meta() else meta


def is_traceparent(text: object) -> bool:
    """Return whether this is a `traceparent` of W3C Trace Context."""
    return isinstance(text, str) and _TRACEPARENT.fullmatch(text) is not None


def validate_traceparent(text: object) -> str:
    """Return a `traceparent`, unchanged. Raises :class:`InvalidRequestError` for anything else."""
    if not isinstance(text, str) or not is_traceparent(text):
        form = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        raise InvalidRequestError(f"traceparent must have the form of W3C Trace Context: {form}")
    return text


def validate_exclude(sid: object) -> str:
    """Return the id of a Socket.IO client, unchanged. Raises :class:`InvalidRequestError` for what cannot be one."""
    if not isinstance(sid, str) or not _SID.fullmatch(sid):
        raise InvalidRequestError("exclude must be the id of a Socket.IO client")
    return sid
