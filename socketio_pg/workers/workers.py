"""Combines the parts of this folder: the workers of this node, as one of them uses them."""

from collections.abc import Callable

from socketio_pg.workers.counts import FILE_NAME, SharedCounts
from socketio_pg.workers.election import Election
from socketio_pg.workers.node import Node
from socketio_pg.workers.peers import Peers


class Workers:
    """The workers of ``node``: their messages (``peers``), the one that leads (``election``), and common ``counts``.

    ``lead(True)`` is called when this worker becomes the leader, ``lead(False)`` when it resigns. Other parts are made
    with these before :meth:`start`.
    """

    def __init__(self, node: Node, lead: Callable[[bool], None]) -> None:
        self.node = node
        self.peers = Peers(node)
        self.election = Election(node, self.peers, lead)
        self.counts = SharedCounts(node.directory / FILE_NAME)
        self.peers.watch(self._on_change)

    def start(self) -> None:
        """Claim a slot and connect to the others. Call it after the fork, and ``election.start()`` then."""
        self.peers.start()
        self.counts.join(self.node.slot)

    def stop(self) -> None:
        """Leave the node."""
        self.election.resign()
        self.peers.stop()

    def _on_change(self, slot: int, here: bool) -> None:
        if not here:
            self.counts.forget(slot)
