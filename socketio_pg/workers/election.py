"""Elects the worker that leads the node: it listens, publishes and relays for all. Another takes over when it ends."""

import contextlib
import logging
import os
from collections.abc import Callable

from socketio_pg.core import green
from socketio_pg.workers.node import Node
from socketio_pg.workers.peers import Peers

logger = logging.getLogger("socketio_pg.workers")

_LEADING, _RESIGNED = "leading", "resigned"


class Election:
    """Calls ``lead(True)`` when this worker becomes the leader, and ``lead(False)`` when it resigns.

    The lock of a file decides, so there is never more than one leader; messages only tell the others who it is.
    """

    #: Seconds between two attempts: normally, and while there is no leader: its lock may outlive its sockets briefly.
    interval = 1.0
    interval_without = 0.01

    def __init__(self, node: Node, peers: Peers, lead: Callable[[bool], None]) -> None:
        self._node = node
        self._peers = peers
        self._lead = lead
        #: The slot of the leader; None while there is none. The newest term that is known.
        self._leader: int | None = None
        self._term = 0
        self._worker = green.Worker()
        self._change = green.Event()
        self._resigned = False
        peers.watch(self._on_change)
        peers.receive(_LEADING, self._receive)
        peers.receive(_RESIGNED, lambda slot, body: self._forget(slot))

    @property
    def leader(self) -> int | None:
        """The slot of the worker that leads; None while that is not known."""
        return self._leader

    @property
    def leading(self) -> bool:
        """Whether this worker leads."""
        return self._leader is not None and self._leader == self._node.slot

    @property
    def resigned(self) -> bool:
        """Whether this worker does not stand for election any more: it is about to end."""
        return self._resigned

    def wait_leader(self, seconds: float) -> int | None:
        """Wait until there is a leader, for at most ``seconds``. Return its slot."""
        with contextlib.suppress(green.TimedOut), green.timeout(seconds):
            while self._leader is None:
                self._change.wait()
        return self._leader

    def start(self) -> None:
        """Start to stand for election. Call it when the peers have started."""
        self._resigned = False
        if not self._try():
            self._worker.start(self._run)

    def resign(self) -> None:
        """Let another worker lead, for good: this one is about to end."""
        self._resigned = True
        self._worker.stop()
        if self.leading:
            self._lead(False)
            self._node.stop_leading()
            self._note(None)
            self._peers.tell(_RESIGNED, b"")

    def _run(self) -> None:
        while not self._try():
            with contextlib.suppress(green.TimedOut):
                if self._leader is None:
                    green.sleep(self.interval_without)
                else:
                    self._change.wait(self.interval)

    def _try(self) -> bool:
        if not self._node.try_lead():
            return False
        logger.info("worker %d (pid %d) listens, publishes and relays for all workers", self._node.slot, os.getpid())
        self._receive(self._node.slot, b"%d" % self._node.term)
        self._lead(True)
        self._peers.tell(_LEADING, b"%d" % self._node.term)
        return True

    def _receive(self, slot: int, body: bytes) -> None:
        # The words of two workers may arrive in any order: that of a former leader must not replace the newer one.
        term = int(body)
        if term >= self._term:
            self._term = term
            self._note(slot)

    def _on_change(self, slot: int, here: bool) -> None:
        if not here:
            self._forget(slot)
        elif self.leading:
            self._peers.send(slot, _LEADING, b"%d" % self._node.term)

    def _forget(self, slot: int) -> None:
        if slot == self._leader:
            self._note(None)

    def _note(self, leader: int | None) -> None:
        self._leader = leader
        change, self._change = self._change, green.Event()
        change.send()
