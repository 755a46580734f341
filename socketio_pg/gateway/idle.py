"""Who subscribes to nothing and sends nothing is disconnected after a while (IDLE_TIMEOUT)."""

import time
from collections.abc import Callable

from socketio_pg.core import green
from socketio_pg.pubsub.hub import Hub


class Idle:
    """Calls ``on_idle(sid)`` for clients of ``hub`` without a subscription that were not heard of for ``timeout`` s."""

    def __init__(self, hub: Hub, timeout: float, on_idle: Callable[[str], None]) -> None:
        self._hub = hub
        self._timeout = timeout
        self._on_idle = on_idle
        self._heard: dict[str, float] = {}
        self._worker = green.Worker()

    def start(self) -> None:
        """Start the green thread, where there is a limit."""
        if self._timeout:
            self._worker.start(self._run)

    def stop(self) -> None:
        """End the green thread."""
        self._worker.stop()

    def heard(self, sid: str) -> None:
        """The client has connected, or sent something."""
        if self._timeout:
            self._heard[sid] = time.monotonic()

    def drop(self, sid: str) -> None:
        """The client has left."""
        self._heard.pop(sid, None)

    def _run(self) -> None:
        while True:
            green.sleep(self._timeout / 4)
            latest = time.monotonic() - self._timeout
            for sid, heard in list(self._heard.items()):
                if self._hub.channels_of(sid):
                    self._heard[sid] = time.monotonic()
                elif heard < latest and self._heard.pop(sid, None) is not None:
                    green.run_soon(self._on_idle, sid)
