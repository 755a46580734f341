"""The seal of a program that emits: it reads the cluster key on connections of the program."""

import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from socketio_pg.client import fetch
from socketio_pg.core import parsers, variables
from socketio_pg.core.errors import ConfigurationError
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.core.seal import Key, Seal, SealError
from socketio_pg.postgres import cluster_keys

_limited_log = RateLimitedLog(logging.getLogger("socketio_pg.sealing"))


class EmitterSeal:
    """Seals and opens with the cluster key, which it reads on connections of its caller. For any number of threads.

    ``cluster_key`` is the setting CLUSTER_KEY; the default is what the environment has.
    """

    #: Seconds between two reads, and their minimum when a text names an unknown key.
    interval = 8.0
    min_interval = 1.0

    def __init__(self, cluster_key: str | None) -> None:
        given = None if cluster_key else variables.in_environment("CLUSTER_KEY")
        if given is not None:
            cluster_key = given.value
        try:
            texts = parsers.cluster_key(cluster_key) if cluster_key else ()
        except ValueError as error:
            name = "CLUSTER_KEY" if given is None else given.name
            raise ConfigurationError(f"{name} is not valid; allowed: {error}.") from None
        self._given = [Key.from_text(text) for text in texts]
        self._seal = Seal()
        self._read_at = float("-inf")
        self._unknown = False
        self._lock = threading.Lock()

    @property
    def due(self) -> bool:
        """True if the key was read too long ago."""
        return time.monotonic() - self._read_at >= (self.min_interval if self._unknown else self.interval)

    def refresh(self, connection: Any) -> None:
        """Read the key if that is due. Raises :class:`ConfigurationError`, and the driver's errors."""
        if not self.due:
            return
        run = functools.partial(fetch, connection)
        identity, keys = cluster_keys.read(run, self._given, functools.partial(_verify, run))
        with self._lock:
            self._seal.use(identity, keys)
        self._read_at, self._unknown = time.monotonic(), False

    def seal(self, channel: str, text: str) -> str:
        """Return ``text`` sealed for ``channel``, after :meth:`refresh`."""
        return self._seal.seal(channel, text)

    def open(self, channel: str, text: str) -> str | None:
        """Return the text that another process has sealed; None, and a line in the log, if it cannot be opened."""
        try:
            with self._lock:
                return self._seal.open(channel, text)
        except SealError as error:
            self._unknown = self._unknown or error.reason == "unknown_key"
            _limited_log(logging.WARNING, "refused a text on %s: %s", channel, error.reason)
            return None


def _verify(run: Callable[[str], Sequence[Sequence[Any]]]) -> None:
    """Raise :class:`ConfigurationError` if the key may be one that another role has chosen, to read or forge emits."""
    trusted = variables.in_environment("SCHEMA_OWNER")
    owners = run(cluster_keys.foreign_owners(trusted.value if trusted else None))
    if owners:
        message = "the schema socketio_pg is not trusted"
        raise ConfigurationError(message, detail=f"{message}: it, or its table cluster_key, belongs to {owners[0][0]}")
