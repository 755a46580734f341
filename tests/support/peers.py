"""Workers of a node that run in the test's own process."""

from typing import Protocol

from socketio_pg.core import green
from socketio_pg.workers.node import Node
from socketio_pg.workers.peers import Peers
from tests.support.patience import until


class HasPeers(Protocol):
    """A worker."""

    @property
    def node(self) -> Node: ...

    @property
    def peers(self) -> Peers: ...


def meet(*workers: HasPeers) -> None:
    """Wait until each worker knows all others by name, also successors of those that have left."""
    until(
        lambda: (
            green.sleep()
            or all(
                other is one or other.node.name.hex() in {found.name for found in one.peers._outgoing.values()}
                for one in workers
                for other in workers
            )
        ),
        "all workers meet",
    )
