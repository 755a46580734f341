"""Ends a worker of gunicorn that nothing would end: its master was killed, or the directory of its node is gone."""

import logging
import os
import signal

from socketio_pg.core import green
from socketio_pg.workers.node import Node

logger = logging.getLogger("socketio_pg.workers")


class Ending:
    """Sends this process SIGTERM, at which it drains, when its ``node`` cannot go on, or when it has lost its master.

    ``node`` is None for the only worker of a node.
    """

    #: Seconds between two looks.
    interval = 0.5

    def __init__(self, node: Node | None) -> None:
        self._node = node
        self._worker = green.Worker()

    def start(self, master: int) -> None:
        """Start to look. ``master`` is the process id of gunicorn's master."""
        self._worker.start(self._run, master)

    def stop(self) -> None:
        """Stop looking."""
        self._worker.stop()

    def _run(self, master: int) -> None:
        while (reason := self._reason(master)) is None:
            green.sleep(self.interval)
        logger.error("%s: this worker ends", reason)
        os.kill(os.getpid(), signal.SIGTERM)

    def _reason(self, master: int) -> str | None:
        # On eventlet, gunicorn's workers do not look, and would serve for ever: no new gunicorn could have their port.
        if os.getppid() != master:
            return "gunicorn's master was killed"
        # The workers that are there could go on, but not meet a new one. Their successors make the directory again.
        if self._node is not None and not self._node.intact:
            return f"the directory {self._node.directory} of the workers was removed"
        return None
