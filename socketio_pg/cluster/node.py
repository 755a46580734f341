"""The base class of a node's client managers."""

import logging
import uuid
from collections.abc import Callable
from typing import Any

from socketio_pg.cluster.queue_manager import QueueManager
from socketio_pg.core import green
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.core.sealing import Sealing
from socketio_pg.protocol import fanout

_limited_log = RateLimitedLog(logging.getLogger("socketio_pg.cluster"))


class ClusterManager(QueueManager, fanout.Manager):
    """The rooms of one node, and the connection to the other nodes."""

    def __init__(self, *args: Any, sealing: Sealing, **options: Any) -> None:
        super().__init__(*args, **options)
        self._sealing = sealing
        self._worker = green.Worker()
        self._gap_watchers: list[Callable[[], None]] = []

    def initialize(self) -> None:
        # One that was made before a fork (--preload) would be that of all workers.
        self.host_id = uuid.uuid4().hex
        super().initialize()

    def stop(self) -> None:
        """Stop receiving messages from other nodes."""
        self._worker.stop()

    def watch_gaps(self, watcher: Callable[[], None]) -> None:
        """Call ``watcher`` when this node receives again after it may have missed messages, on Redis and Kafka."""
        self._gap_watchers.append(watcher)

    def _receives_again(self) -> None:
        for watcher in self._gap_watchers:
            watcher()

    def _seal(self, text: str) -> str:
        return self._sealing.seal(self.channel, text)

    def _open(self, text: str | bytes | None) -> str | None:
        if isinstance(text, bytes):
            text = text.decode("ascii", "replace")
        # In Kafka a message may have no value.
        return self._sealing.open(self.channel, text or "")

    def _not_published(self, problem: object) -> None:
        """Log the problem, once a second at most, instead of letting the caller's emit fail."""
        _limited_log(logging.ERROR, "publishing on the message queue failed: %s", problem)

    def _not_heard(self, problem: object) -> None:
        """Log the problem, once a second at most."""
        _limited_log(logging.ERROR, "receiving from the message queue failed: %s", problem)

    def _thread(self) -> None:
        # python-socketio starts this method in a green thread to which it keeps no reference.
        self._worker.start(super()._thread)
