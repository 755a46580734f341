"""Conflation: of each key, the newest message within an interval. Bookkeeping of one channel, pure, no I/O.

The first message of an interval is due at once, if none of the interval before waits. Others wait until it ends; a
newer one of the same key takes the place of an older one. The messages that wait leave together, in the order of their
positions: up to the last of these, only messages that were replaced are missing.
"""

from collections.abc import Hashable, Sequence

import orjson

from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.pubsub.filters import Reader, path_keys

#: The maximum number of keys of a channel that wait: when another one comes, all of them leave.
MAX_KEYS = 1_000


class Key:
    """The key of messages: the value at a path of the payload. An invalid path, or none, gives all the same key."""

    def __init__(self, path: str | None) -> None:
        self.path = path
        try:
            self._keys = () if path is None else path_keys(path)
        except InvalidRequestError:
            self._keys = ()

    def of(self, message: EncodedMessage) -> Hashable:
        """Return the key of a message. Values of different types are different keys; 1 and 1.0 are the same one."""
        if not self._keys or self.path is None:
            return None
        value = Reader(message.payload_json).resolve(self.path, self._keys)
        if isinstance(value, (dict, list)):
            return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
        return isinstance(value, bool), value


class Conflated:
    """The messages of one channel, in one tier, that wait for the end of an interval."""

    def __init__(self, rate: float, key: Key) -> None:
        self.rate = rate
        self.key = key
        #: When the next messages may be sent (monotonic).
        self.due_at = 0.0
        #: Whether messages of it are being sent at the moment: later ones wait, to keep the order.
        self.sending = False
        #: Key → message, in the order of positions.
        self._waiting: dict[Hashable, EncodedMessage] = {}
        #: The number of messages that others have replaced.
        self.replaced = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, messages: Sequence[EncodedMessage]) -> None:
        """Add messages in order. Each takes the place of an older one of its key."""
        for message in messages:
            key = self.key.of(message)
            self.replaced += self._waiting.pop(key, None) is not None
            self._waiting[key] = message

    def is_due(self, now: float) -> bool:
        """Return whether what waits may be sent."""
        return not self.sending and (now >= self.due_at or len(self._waiting) > MAX_KEYS)

    def take(self, now: float) -> list[EncodedMessage]:
        """Return what waits, in order. The next interval begins."""
        taken = list(self._waiting.values())
        self._waiting.clear()
        self.due_at = now + 1.0 / self.rate
        return taken

    @property
    def before(self) -> int | None:
        """The position before the first message that waits; None if there is none, or it has no position."""
        first = next(iter(self._waiting.values()), None)
        return None if first is None or first.position is None else first.position - 1

    def drop(self) -> None:
        """Forget what waits."""
        self._waiting.clear()
