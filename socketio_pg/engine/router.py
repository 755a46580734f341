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
from socketio_pg.workers.node import Node
from socketio_pg.workers.peers import Peers
from socketio_pg.workers.sockets import PART

_CONNECTION = "connection"
#: The request line: the path, also of an absolute URI, and the query.
_LINE = re.compile(rb"[A-Z]+ (?:https?://[^/? ]*)?([^? ]*)\??([^ ]*) ")
_PATHS = (b"/socket.io/", b"/socket.io")
#: The end of the path of a stream, which lasts as long as a session.
_STREAM = re.compile(rb"/api/(?:channels/.+/)?stream\Z")


class Router:
    """Routes the requests of this worker. ``sessions()`` returns the number of its sessions and streams.

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

        def receive(slot: int, body: bytes, descriptor: int | None) -> None:
            header, _, received = body.partition(b"\n")
            pair, address, listener = json.loads(header)
            if descriptor is None:
                self._node.loads.received(slot, pair)
                self._tell(0)  # at once: many could be passed until the load is told again
                return
            green.run_soon(serve, slot, pair, descriptor, received, _from_json(address), _from_json(listener))

        def serve(slot: int, pair: int | None, *connection: Any) -> None:
            # The head of the request is there, so it becomes a session before any other green thread runs.
            self._node.loads.received(slot, pair)
            front.serve(*connection)

        self._peers.receive_descriptors(_CONNECTION, receive)

    def route(self, head: bytes, connection: Connection) -> bool:
        """Pass a connection to the worker that must serve the request with this head. Return whether it was passed."""
        if connection.passed:
            connection.passed = False  # the other worker has decided
            return False
        slot, chosen = self._slot_for(head)
        if slot is not None and slot != self._node.slot and self._pass(slot, chosen, connection):
            return True
        if chosen:
            self._tell(1)  # the session begins when this has returned
        return False

    def _pass(self, slot: int, chosen: bool, connection: Connection) -> bool:
        """Pass a connection; count it for that worker if it was ``chosen``. Return False if too much was read of it."""
        pair = self._node.loads.passing(slot) if chosen else None
        body = json.dumps([pair, _as_json(connection.address), _as_json(connection.listener)]).encode()
        body += b"\n" + connection.received
        passed = False
        try:
            if len(body) > PART:
                return False
            taken = connection.give_away()
            passed = self._peers.pass_descriptor(slot, _CONNECTION, body, taken.fileno())
        finally:
            if pair is not None and not passed:
                self._node.loads.take_back(slot, pair)
        taken.close()  # where it could not be passed, the client connects again
        return True

    def _slot_for(self, head: bytes) -> tuple[int | None, bool]:
        """Return the slot of the worker that must serve a request, and whether it was chosen by its load.

        The slot is None when any worker may.
        """
        line = _LINE.match(head)
        if line is None or not line[1].endswith(_PATHS):
            # A worker that drains refuses all requests, so fast that it would get most of them.
            lasts = line is not None and _STREAM.search(line[1]) is not None
            return (self._lightest(), True) if lasts or self._draining() else (None, False)
        query = parsed(line[2].decode("latin-1"))
        if query.sid is not None:
            try:
                return self._owner(base64.urlsafe_b64decode(query.sid)), False
            except ValueError:
                return None, False
        return (self._lightest(), True) if query.transport else (None, False)

    def _owner(self, session_id: bytes) -> int | None:
        return self._peers.slot_of(self._node.worker_of(session_id).hex())

    def _lightest(self) -> int | None:
        """Return the slot of the worker that gets a new session; None when none wants it."""
        slot = self._node.slot
        self._tell(0)
        here = {slot, *self._peers.slots}
        loads = self._node.loads.of(here - {slot} if self._draining() else here, here)
        if not loads:
            return None
        lightest = min(loads, key=loads.__getitem__)
        own = loads.get(slot)
        if own is not None and own - loads[lightest] <= self.slack + own * self.slack_share:
            lightest = slot
        return lightest

    def _tell_load(self) -> None:
        while True:
            self._tell(0)
            green.sleep(self.interval)

    def _tell(self, beginning: int) -> None:
        """Tell the number of sessions, and of those that are ``beginning``."""
        wants = self._peers.takes_descriptors and not self._draining()
        self._node.loads.tell(self._sessions() + beginning if wants else None)


def _as_json(address: Address) -> Any:
    # An abstract Unix socket has bytes.
    return {"abstract": address.hex()} if isinstance(address, bytes) else address


def _from_json(found: Any) -> Address:
    if isinstance(found, dict):
        return bytes.fromhex(found["abstract"])
    return tuple(found) if isinstance(found, list) else found
