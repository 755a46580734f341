"""Ephemeral messages that wait for a handler: of each sender and key the newest one. No I/O."""

import threading
from collections.abc import Mapping
from typing import Any, TypedDict

#: Messages that wait at most. Senders choose the keys.
_MOST = 1000


class _EphemeralMessage(TypedDict):
    channel: str
    payload: Any


class EphemeralMessage(_EphemeralMessage, total=False):
    """An ephemeral message as in docs/protocol.md. It also has ``from``, the sender: ``{"client": sid, "sub": …}``."""

    ephemeral: bool
    key: str


class Newest:
    """One thread adds, another one takes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[tuple[object, object], EphemeralMessage] = {}

    def add(self, message: EphemeralMessage) -> bool:
        """Add a message, in place of an older one; return whether the handler must be called."""
        sender: Mapping[str, Any] = message.get("from") or {}  # type: ignore[assignment]  # a keyword in Python
        place = (sender.get("client"), message.get("key"))
        with self._lock:
            was_empty = not self._waiting
            self._waiting.pop(place, None)  # the order is that of arrival
            if len(self._waiting) == _MOST:
                del self._waiting[next(iter(self._waiting))]
            self._waiting[place] = message
        return was_empty

    def take(self) -> list[EphemeralMessage]:
        with self._lock:
            taken, self._waiting = self._waiting, {}
        return list(taken.values())
