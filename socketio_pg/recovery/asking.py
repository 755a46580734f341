"""Messages between the processes about sessions: they ask each other to let go of one, and say that they have.

`keeping` handles what others ask for.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from socketio_pg.core import green
from socketio_pg.core.channels import SESSIONS_CHANNEL
from socketio_pg.core.errors import ClusterKeyError, DatabaseUnavailableError, SocketIOPGError
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.pubsub.pubsub import PubSub

_limited_log = RateLimitedLog(logging.getLogger("socketio_pg.recovery"))

#: Sessions in one text.
_TOGETHER = 50


class Asking:
    """Sends and opens these messages. ``own`` is the id of this process in the database."""

    #: Seconds for another process to let go of a session.
    release_seconds = 2.0

    def __init__(self, pubsub: PubSub, own: str) -> None:
        self._pubsub = pubsub
        self._sealing = pubsub.sealing
        self._own = own
        #: Sessions that another process is asked for: set when it has let go.
        self._asked: dict[str, green.Event] = {}
        self._to_ask: dict[str, str | None] = {}
        self._worker = green.Worker()
        #: Processes that did not answer.
        self._silent: set[str] = set()

    def stop(self) -> None:
        """Ask for no more sessions."""
        self._worker.stop()

    def is_silent(self, owner: str) -> bool:
        """Return whether a process was asked in vain, and has not been heard since."""
        return owner in self._silent

    def ask(self, sid: str, owner: str | None) -> None:
        """Ask the owner of a session (None: any process) to let go of it. Return when it has, or after a while.

        Raises :class:`DatabaseUnavailableError` when it could not be asked.
        """
        asked = self._asked[sid] = green.Event()
        self._to_ask[sid] = owner
        self._worker.start(self._ask_all)
        try:
            asked.wait(self.release_seconds)
        except green.TimedOut:
            if sid in self._to_ask:
                raise DatabaseUnavailableError("another node cannot be asked at the moment") from None
            if owner is not None:
                self._silent.add(owner)
        finally:
            del self._asked[sid]
            self._to_ask.pop(sid, None)

    def _ask_all(self) -> None:
        while self._to_ask:
            asked = [(owner, sid) for sid, owner in self._to_ask.items()]
            parts = [asked[start : start + _TOGETHER] for start in range(0, len(asked), _TOGETHER)]
            if self.tell(*({"ask": part} for part in parts)):
                for _, sid in asked:
                    self._to_ask.pop(sid, None)
            else:
                green.sleep(0.1)

    def tell(self, *messages: dict[str, Any]) -> bool:
        """Send messages to the other processes. Return whether they were sent."""
        try:
            texts = [json.dumps({"by": self._own} | message) for message in messages]
            sealed = [self._sealing.seal(SESSIONS_CHANNEL, text) for text in texts]
            self._pubsub.publish_reserved(SESSIONS_CHANNEL, sealed)
            return True
        except (SocketIOPGError, ClusterKeyError) as error:
            _limited_log(logging.WARNING, "other nodes cannot be told about a client's session: %s", error)
            return False

    def open(self, texts: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the messages of other processes in sealed ``texts``. Notes which of them have let go of a session."""
        for sealed in texts:
            text = self._sealing.open(SESSIONS_CHANNEL, sealed)
            message = None if text is None else json.loads(text)
            if message is None:
                continue
            self._silent.discard(message["by"])
            if message["by"] == self._own:
                continue
            for sid in message.get("released", ()):
                if sid in self._asked:
                    self._asked[sid].send()
            yield message
