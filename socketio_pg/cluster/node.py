"""What the client managers of a server that is one of several nodes have in common."""

import logging
from typing import Any

from socketio_pg.cluster.queue_manager import QueueManager
from socketio_pg.core import green
from socketio_pg.core.logs import Complaints
from socketio_pg.protocol import fanout

_complain = Complaints(logging.getLogger("socketio_pg.cluster"))


class ClusterManager(QueueManager, fanout.Manager):
    """The rooms of one node, and the way to the other nodes'."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._worker = green.Worker()

    def stop(self) -> None:
        """Hear nothing more from other nodes."""
        self._worker.stop()

    def _not_published(self, problem: object) -> None:
        """Nobody else's emit is to fail, and the log is not to fill: a line a second."""
        _complain(logging.ERROR, "nothing can be published on the message queue: %s", problem)

    def _not_heard(self, problem: object) -> None:
        _complain(logging.ERROR, "nothing is heard over the message queue: %s", problem)

    def _thread(self) -> None:
        # python-socketio starts this in a green thread that it does not keep.
        self._worker.start(super()._thread)
