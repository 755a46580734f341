"""Seals and opens the texts between nodes for all parts of a node. Waits for the key, counts and logs refused texts.

The cryptography is in `core.seal`; `postgres.key_reader` provides the keys.
"""

import contextlib
import logging
import os
import time
from collections.abc import Sequence

from socketio_pg.core import green, metrics
from socketio_pg.core.errors import ClusterKeyError
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.core.seal import Key, Seal, SealError

_limited_log = RateLimitedLog(logging.getLogger("socketio_pg.sealing"))

#: Reason → line of the log. Each is written once a second at most.
_LINES = {
    "unsealed": "refused a text on %s: a server or program did not seal it",
    "foreign": "refused a text on %s of another installation: %s",
    "unknown_key": "refused a text on %s that was sealed with an unknown key",
    "forged": "refused a text on %s that was not sealed with the cluster key",
    "stale": "refused a text on %s that is old; or the clocks of two nodes differ",
    "replayed": "refused a text on %s that has arrived before",
}


class Sealing:
    """The :class:`Seal` of this node, shared by its parts."""

    #: Seconds for which :meth:`seal` waits for the first key.
    wait_seconds = 2.0
    #: Seconds for :meth:`refused`.
    memory = 60.0

    def __init__(self, seal: Seal) -> None:
        self._seal = seal
        #: The identity of the installation and its keys, as last given to :meth:`use`.
        self.used: tuple[str, Sequence[Key]] | None = None
        #: For a node without any cluster key: nobody but this node can open what it seals.
        self._own_identity = f"own-{os.urandom(12).hex()}"
        self._own = Seal()
        self._own.use(self._own_identity, [Key.from_bytes(os.urandom(32))])
        self._ready = green.Event()
        self._keys_wanted = green.Event()
        #: When a text was last refused (monotonic), by reason.
        self._refused: dict[str, float] = {}

    @property
    def ready(self) -> bool:
        """True once there is a key."""
        return self._seal.ready

    def use(self, identity: str, keys: Sequence[Key]) -> None:
        """Use ``keys`` from now on, see :meth:`Seal.use`."""
        self._seal.use(identity, keys)
        self.used = identity, keys
        self._ready.send()

    def refused(self) -> list[str]:
        """Return the reasons for which texts were refused during the last minute."""
        return [reason for reason, at in self._refused.items() if time.monotonic() - at < self.memory]

    def want_keys(self) -> None:
        """Have the keys read again soon: there may be new ones."""
        self._keys_wanted.send()

    def wait_wanted(self, seconds: float) -> None:
        """Wait until :meth:`want_keys` is called, for at most ``seconds``."""
        with contextlib.suppress(green.TimedOut):
            self._keys_wanted.wait(seconds)
        self._keys_wanted = green.Event()

    def seal(self, channel: str, text: str) -> str:
        """Return ``text`` sealed for ``channel``. Waits for the first key.

        Raises :class:`ClusterKeyError` when there is none.
        """
        self._wait_ready()
        return self._seal.seal(channel, text)

    def seal_or_own(self, channel: str, text: str) -> str:
        """Return ``text`` sealed for ``channel``; without a cluster key with one of this node. Does not wait."""
        return (self._seal if self._seal.ready else self._own).seal(channel, text)

    def open_or_own(self, channel: str, text: str, reader: int) -> str | None:
        """Return the text that :meth:`seal_or_own` has sealed; None as :meth:`open`, also for a repeated one.

        ``reader``: one of several that get the channel's texts.
        """
        if text.split(" ", 2)[1:2] == [self._own_identity]:
            try:
                return self._own.open(channel, text, reader=reader)
            except SealError:
                return None
        return self.open(channel, text, reader=reader)

    def open_shown(self, purpose: str, text: str) -> str | None:
        """Return the text that was sealed for ``purpose``; None if it cannot be opened.

        For texts that clients show again and again: a refused one is neither counted nor logged. Waits for the first
        key: a server that has just started must not refuse what it cannot judge yet.

        Raises :class:`ClusterKeyError` when there is none.
        """
        self._wait_ready()
        if not self._seal.ready:
            raise ClusterKeyError("the cluster key has not been read from the database yet")
        try:
            return self._seal.open(purpose, text, replayable=True)
        except SealError as error:
            if error.reason == "unknown_key":
                self.want_keys()
            return None

    def seal_for_client(self, purpose: str, text: str) -> str:
        """Return ``text`` sealed for :meth:`open_from_client`, without the identity of the installation.

        ``purpose`` is not the name of a channel. Waits and raises as :meth:`seal`.
        """
        _, _, key, encoded = self.seal(purpose, text).split(" ")
        return f"{key}.{encoded}"

    def open_from_client(self, purpose: str, text: str) -> str | None:
        """Return a text that :meth:`seal_for_client` of any node has sealed, however old it is; None for another one.

        A refused one is neither counted nor logged. Waits and raises as :meth:`open_shown`.
        """
        self._wait_ready()
        key, _, encoded = text.partition(".")
        return self.open_shown(purpose, self._seal.sealed(key, encoded))

    def wait_ready(self, seconds: float) -> bool:
        """Wait for the first key, for at most ``seconds``. Return whether there is one."""
        if not self._seal.ready:
            with contextlib.suppress(green.TimedOut):
                self._ready.wait(seconds)
        return self._seal.ready

    def _wait_ready(self) -> None:
        self.wait_ready(self.wait_seconds)

    def open(self, channel: str, text: str, *, replayable: bool = False, reader: int = 0) -> str | None:
        """Return the text that was sealed for ``channel``; None, counted and logged, if it cannot be opened.

        Without any key nothing is counted: this node has just started, or its role may not read the key.

        ``replayable`` and ``reader``: see :meth:`Seal.open`.
        """
        if not self._seal.ready:
            return None
        try:
            return self._seal.open(channel, text, replayable=replayable, reader=reader)
        except SealError as error:
            self._refused[error.reason] = time.monotonic()
            metrics.refused_messages.labels(error.reason).inc()
            if error.reason == "unknown_key":
                self.want_keys()
            details = (error.detail,) if error.reason == "foreign" else ()
            _limited_log(logging.WARNING, _LINES[error.reason], channel, *details)
            return None
