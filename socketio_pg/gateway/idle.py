"""Disconnects idle clients: no subscription and no event for IDLE_TIMEOUT seconds."""

import time
from collections.abc import Callable

from socketio_pg.core import green
from socketio_pg.pubsub.hub import Hub


class Idle:
    """Calls ``on_idle(sid)`` for clients without a subscription that sent nothing for ``timeout`` seconds.

    ``has_tables(sid)``: whether a client has live tables.
    """

    def __init__(
        self,
        hub: Hub,
        timeout: float,
        on_idle: Callable[[str], None],
        has_tables: Callable[[str], bool] = lambda sid: False,
    ) -> None:
        self._hub = hub
        self._has_tables = has_tables
        self._timeout = timeout
        self._on_idle = on_idle
        self._heard: dict[str, float] = {}
        self._worker = green.Worker()

    def start(self) -> None:
        """Start the green thread, if there is a timeout."""
        if self._timeout:
            self._worker.start(self._run)

    def stop(self) -> None:
        """End the green thread."""
        self._worker.stop()

    def heard(self, sid: str) -> None:
        """Note that a client has connected or sent an event."""
        if self._timeout:
            self._heard[sid] = time.monotonic()

    def drop(self, sid: str) -> None:
        """Forget a client that has left."""
        self._heard.pop(sid, None)

    def _run(self) -> None:
        while True:
            green.sleep(self._timeout / 4)
            latest = time.monotonic() - self._timeout
            for sid, heard in list(self._heard.items()):
                if self._hub.channels_of(sid) or self._has_tables(sid):
                    self._heard[sid] = time.monotonic()
                elif heard < latest and self._heard.pop(sid, None) is not None:
                    green.run_soon(self._on_idle, sid)
