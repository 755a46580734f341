"""Decides which worker of the node serves a request, and passes the connection to it.

    a request of a session ──► the worker that has the session, which its id names
    a new session          ──► the worker with the fewest sessions; likewise a stream of Server-Sent Events
    any other request      ──► the worker that has accepted it, unless it drains

The connection stays with the worker that got it, for its next requests too, until one of them belongs elsewhere.
"""

import base64
import json
import re
from collections.abc import Callable
from typing import Any

from socketio_pg.core import green
from socketio_pg.engine.front import Address, Connection, Front
from socketio_pg.engine.http import parsed
from socketio_pg.workers.node import NO_LOAD, Node
from socketio_pg.workers.peers import Peers
from socketio_pg.workers.sockets import PART

_CONNECTION = "connection"
#: The request line: the path, also of an absolute URI, and the query.
_LINE = re.compile(rb"[A-Z]+ (?:https?://[^/? ]*)?([^? ]*)\??([^ ]*) ")
_PATHS = (b"/socket.io/", b"/socket.io")
#: The end of the path of a stream, which lasts as long as a session.
_STREAM = re.compile(rb"/api/(?:channels/.+/)?stream\Z")


class Router:
    """Routes the requests of this worker. ``sessions()`` returns the number of its sessions.

    ``draining()``: whether this worker refuses new sessions.
    """

    #: Seconds between two updates of this worker's load.
    interval = 0.25
    #: A session is passed on when this worker has so many more sessions than another: as a number, and as a share.
    slack, slack_share = 4, 0.02

    def __init__(self, node: Node, peers: Peers, sessions: Callable[[], int], draining: Callable[[], bool]) -> None:
        self._node = node
        self._peers = peers
        self._sessions = sessions
        self._draining = draining
        self._worker = green.Worker()

    def new_session_id(self) -> str:
        """Return the id of a new session, which names this worker to the others, and says nothing to anybody else."""
        return base64.urlsafe_b64encode(self._node.new_session_id()).decode()

    def start(self) -> None:
        """Start to tell the others how many sessions this worker has."""
        self._worker.start(self._tell_load)

    def stop(self) -> None:
        """Stop telling it."""
        self._worker.stop()

    def serve_with(self, front: Front) -> None:
        """Serve the connections that other workers pass with ``front``."""

        def receive(slot: int, body: bytes, descriptor: int) -> None:
            header, _, received = body.partition(b"\n")
            address, listener = map(_from_json, json.loads(header))
            green.run_soon(front.serve, descriptor, received, address, listener)

        self._peers.receive_descriptors(_CONNECTION, receive)

    def route(self, head: bytes, connection: Connection) -> bool:
        """Pass a connection to the worker that must serve the request with this head. Return whether it was passed."""
        if connection.passed:
            connection.passed = False  # the other worker has decided
            return False
        slot = self._slot_for(head)
        if slot is None or slot == self._node.slot:
            return False
        body = json.dumps([_as_json(connection.address), _as_json(connection.listener)]).encode()
        body += b"\n" + connection.received
        if len(body) > PART:
            return False
        taken = connection.give_away()
        self._peers.pass_descriptor(slot, _CONNECTION, body, taken.fileno())
        taken.close()  # where it could not be passed, the client connects again
        return True

    def _slot_for(self, head: bytes) -> int | None:
        """Return the slot of the worker that must serve a request; None when any may."""
        line = _LINE.match(head)
        if line is None or not line[1].endswith(_PATHS):
            # A worker that drains refuses all requests, so fast that it would get most of them.
            lasts = line is not None and _STREAM.search(line[1]) is not None
            return self._lightest() if lasts or self._draining() else None
        query = parsed(line[2].decode("latin-1"))
        if query.sid is not None:
            try:
                return self._owner(base64.urlsafe_b64decode(query.sid))
            except ValueError:
                return None
        return self._lightest() if query.transport else None

    def _owner(self, session_id: bytes) -> int | None:
        return self._peers.slot_of(self._node.worker_of(session_id).hex())

    def _lightest(self) -> int | None:
        """Return the slot of the worker that gets a new session, and count that for it."""
        slot = self._node.slot
        loads = self._node.loads({*self._peers.slots} if self._draining() else {slot, *self._peers.slots})
        if not loads:
            return None
        lightest = min(loads, key=loads.__getitem__)
        own = loads.get(slot)
        if own is not None and own - loads[lightest] <= self.slack + own * self.slack_share:
            lightest = slot
        self._node.add_load(lightest, 1)  # until that worker tells its load itself
        return lightest

    def _tell_load(self) -> None:
        while True:
            wants = self._peers.takes_descriptors and not self._draining()
            self._node.set_load(self._sessions() if wants else NO_LOAD)
            green.sleep(self.interval)


def _as_json(address: Address) -> Any:
    # An abstract Unix socket has bytes.
    return {"abstract": address.hex()} if isinstance(address, bytes) else address


def _from_json(found: Any) -> Address:
    if isinstance(found, dict):
        return bytes.fromhex(found["abstract"])
    return tuple(found) if isinstance(found, list) else found
