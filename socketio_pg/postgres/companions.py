"""Metadata of notifications: the server sends it sealed, in a notification of its own directly before the message's.

So the message's notification stays the plain payload for all who listen in PostgreSQL, and no role that may execute
NOTIFY can forge metadata. PostgreSQL delivers the notifications of a transaction in order and together, so nothing of
another transaction comes in between. A receiver opens each sealed text once: what arrives again is ignored.
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias

from socketio_pg.core.meta import META_CHANNEL
from socketio_pg.core.sealing import Sealing

Notification: TypeAlias = tuple[str, str]

_numbers = itertools.count(1)


def seal_meta(sealing: Sealing, channel: str, payload: str, meta: str) -> str:
    """Return the text to send on `META_CHANNEL` before a notification whose metadata is ``meta``, JSON text."""
    # Channel names have no control characters.
    return sealing.seal_or_own(META_CHANNEL, f"{channel}\t{_digest(payload)}\t{meta}")


class Joiner:
    """Joins metadata to the notifications of one LISTEN connection: payload, NUL, JSON text.

    No text of PostgreSQL has a NUL, so what follows one comes from here.
    """

    def __init__(self, sealing: Sealing) -> None:
        self._sealing = sealing
        #: Each connection gets all of the texts.
        self._reader = next(_numbers)
        #: Channel, digest of the payload, and metadata for the next notification.
        self._pending: tuple[str, str, str] | None = None

    def reset(self) -> None:
        """Forget what was received: the connection is another one."""
        self._pending = None

    def join(self, notifications: Sequence[Notification], listens: Callable[[str], bool]) -> Sequence[Notification]:
        """Return ``notifications`` without those of `META_CHANNEL`, whose metadata is joined to the others.

        ``listens(channel)``: whether the connection gets the channel's notifications.
        """
        if self._pending is None and not any(channel == META_CHANNEL for channel, _ in notifications):
            return notifications
        found: list[Notification] = []
        for channel, payload in notifications:
            if channel == META_CHANNEL:
                self._pending = self._open(payload)
                # Otherwise it would be joined to a later message with the same payload.
                if self._pending is not None and not listens(self._pending[0]):
                    self._pending = None
                continue
            pending, self._pending = self._pending, None
            if pending is not None and pending[0] == channel and pending[1] == _digest(payload):
                payload = f"{payload}\0{pending[2]}"
            found.append((channel, payload))
        return found

    def _open(self, text: str) -> tuple[str, str, str] | None:
        opened = self._sealing.open_or_own(META_CHANNEL, text, self._reader)
        if opened is None:
            return None
        channel, digest, meta = opened.split("\t", 2)
        return channel, digest, meta


def _digest(payload: str) -> str:
    return hashlib.blake2b(payload.encode(), digest_size=16).hexdigest()
