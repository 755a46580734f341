"""Carries emits, notifications, publications and cluster keys between the workers of a node, in place of a queue.

WorkersCluster   Flask-SocketIO's emits, disconnects, rooms and callbacks
WorkersQueue     the messages of `forwarder` (on the worker that leads) and `remote_listener` (on all)
WorkersPublisher publications, which the worker that leads commits
WorkersKeys      the cluster keys, which the worker that leads reads
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import socketio

from socketio_pg.cluster.node import ClusterManager
from socketio_pg.cluster.queue_manager import Command
from socketio_pg.core import green
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.errors import DatabaseTimeoutError, DatabaseUnavailableError, SocketIOPGError, decode, encode
from socketio_pg.core.problems import Problem
from socketio_pg.core.seal import Key
from socketio_pg.core.sealing import Sealing
from socketio_pg.postgres.key_reader import KeyReader
from socketio_pg.postgres.outgoing import Outgoing, Receipt
from socketio_pg.postgres.publisher import Publisher, Result
from socketio_pg.workers.peers import Peers
from socketio_pg.workers.workers import Workers

logger = logging.getLogger("socketio_pg.cluster")

_EMITS, _COMMANDS, _PUBLISH, _KEYS = "emits", "commands", "publish", "keys"


class _OwnQueue(socketio.PubSubManager):  # type: ignore[misc]
    """A queue between the workers."""

    name = "workers"

    def __init__(self, peers: Peers) -> None:
        super().__init__()
        self._peers = peers
        # Bounded: while it is full, further messages wait in the sockets.
        self._received = green.Queue(1000)
        peers.receive(_EMITS, lambda slot, body: self._received.put(body))

    def _publish(self, data: Command) -> None:
        self._peers.tell(_EMITS, self.json.dumps(data).encode())

    def _listen(self) -> Iterator[Any]:
        while True:
            yield self._received.get()


class WorkersCluster(ClusterManager, _OwnQueue):
    """The rooms of one worker of a node that is connected to no other node."""

    def _open(self, text: str | bytes | None) -> str | None:
        # Nobody else may write to the sockets of the node.
        return text.decode() if isinstance(text, bytes) else text


class WorkersQueue:
    """Carries commands to all workers, to this one without a detour."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._receivers: dict[str, list[Callable[[Command], None]]] = {}
        peers.receive(_COMMANDS, lambda slot, body: self._dispatch(orjson.loads(body)))

    def tell(self, command: Command) -> None:
        """Send a command to the receivers of all workers."""
        if self._peers.slots:
            self._peers.tell(_COMMANDS, orjson.dumps(command))
        self._dispatch(command)

    def receive(self, method: str, receiver: Callable[[Command], None]) -> None:
        """Call ``receiver`` with each command of this ``method``."""
        self._receivers.setdefault(method, []).append(receiver)

    def _dispatch(self, command: Command) -> None:
        for receive in self._receivers.get(command["method"], ()):
            receive(command)


class _LeaderEndedError(DatabaseUnavailableError):
    """The worker that publishes has ended before it has answered."""


@dataclass(slots=True)
class _Asked:
    """A publication that waits for the worker that leads."""

    messages: Sequence[Outgoing]
    numbered: bool
    done: green.Event = field(default_factory=green.Event)
    #: It was sent to a worker that has ended meanwhile.
    repeated: bool = False

    @property
    def repeatable(self) -> bool:
        """Whether each message has an id, so that none is published twice when the request is repeated."""
        return not self.repeated and all(message.id is not None for message in self.messages)


class WorkersPublisher:
    """Publishes as :class:`Publisher` does, by the ``local`` one of the worker that leads."""

    #: Seconds that a publication waits for a worker that leads, and then for its answer.
    leader_timeout = 2.0
    answer_timeout = 10.0

    def __init__(self, local: Publisher, workers: Workers) -> None:
        self._local = local
        self._peers = peers = workers.peers
        self._election = workers.election
        self._waiting: list[_Asked] = []
        self._asking = 0
        peers.answer(_PUBLISH, self._publish_for_others)

    @property
    def problem(self) -> Problem | None:
        """Why durable publications fail, for the operator; None on a worker that does not publish."""
        return self._local.problem

    @property
    def waiting(self) -> int:
        """The number of requests whose commit has not begun, on this worker."""
        return self._local.waiting

    def publish(self, messages: Sequence[Outgoing], *, numbered: bool = True) -> Sequence[Receipt]:
        """Publish as :meth:`Publisher.publish` does; raises as it does.

        If the worker that leads ends meanwhile, it is unknown whether the messages were sent. If all of them have ids,
        the next one is asked to publish them again; otherwise the error says so.
        """
        if self._election.leading and not self._waiting:  # those that wait come first
            return self._local.publish(messages, numbered=numbered)
        asked = _Asked(messages, numbered)
        self._enqueue([asked])
        result: Result = asked.done.wait()
        if isinstance(result, SocketIOPGError):
            raise result
        return result

    def flush(self, seconds: float) -> None:
        """Wait until all messages are committed or refused, at most ``seconds``."""
        with contextlib.suppress(green.TimedOut), green.timeout(seconds):
            while self._asking or self._waiting:
                green.sleep(0.01)
        self._local.flush(seconds)

    def stop(self) -> None:
        """Fail all waiting messages and stop the local publisher."""
        requests, self._waiting = self._waiting, []
        for request in requests:
            request.done.send(DatabaseUnavailableError("the server is shutting down"))
        self._local.stop()

    def _enqueue(self, requests: Sequence[_Asked]) -> None:
        if requests and not self._waiting:
            green.run_soon(self._ask)
        self._waiting.extend(requests)

    def _ask(self) -> None:
        """Ask the worker that leads to publish what waits: all requests of this turn of the hub together."""
        self._asking += 1
        try:
            # A worker that is about to end, as all others may be, does not wait for a leader.
            leader = self._election.wait_leader(0.0 if self._election.resigned else self.leader_timeout)
            requests, self._waiting = self._waiting, []
            results: Sequence[Result]
            try:
                results = self._ask_leader(leader, [(request.messages, request.numbered) for request in requests])
            except _LeaderEndedError as ended:
                again = [request for request in requests if request.repeatable]
                for request in again:
                    request.repeated = True
                requests = [request for request in requests if request not in again]
                results = [ended] * len(requests)
                self._enqueue(again)
            except SocketIOPGError as failed:
                results = [failed] * len(requests)
            except Exception:  # a bug: the callers must not wait for ever
                logger.exception("publishing through another worker failed")
                results = [DatabaseUnavailableError("the message may have been sent or not")] * len(requests)
            for request, result in zip(requests, results, strict=True):
                request.done.send(result)
        finally:
            self._asking -= 1

    def _ask_leader(self, leader: int | None, requests: Sequence[tuple[Sequence[Outgoing], bool]]) -> Sequence[Result]:
        if leader is None and not self._election.resigned:
            raise DatabaseUnavailableError("no worker publishes at the moment")
        if leader is None or self._election.leading:
            return self._local.publish_all(requests)
        answers = self._peers.ask(_PUBLISH, json.dumps(requests).encode(), self.answer_timeout, slots=[leader])
        if leader in answers:
            return [
                decode(result) if isinstance(result, dict) else [Receipt(*receipt) for receipt in result]
                for result in json.loads(answers[leader])
            ]
        unknown = "the message may have been sent or not"
        if leader in self._peers.slots:
            raise DatabaseTimeoutError(f"the worker that publishes does not answer: {unknown}")
        raise _LeaderEndedError(f"the worker that publishes has ended: {unknown}")

    def _publish_for_others(self, body: bytes) -> bytes:
        requests = [([Outgoing(*message) for message in messages], numbered) for messages, numbered in json.loads(body)]
        results = [
            encode(result) if isinstance(result, SocketIOPGError) else list(result)
            for result in self._local.publish_all(requests)
        ]
        return json.dumps(results).encode()


class WorkersKeys:
    """The cluster keys, as :class:`KeyReader` has them; only the worker that leads reads the database."""

    #: Seconds between two questions; the minimum, when a text names an unknown key; and for an answer.
    interval = 8.0
    min_interval = 1.0
    timeout = 5.0
    #: Seconds between two questions while the other worker has no keys.
    backoff = (0.05, 2.0)

    def __init__(self, local: KeyReader, workers: Workers, sealing: Sealing) -> None:
        self._local = local
        self._peers = peers = workers.peers
        self._election = workers.election
        self._sealing = sealing
        self._worker = green.Worker()
        peers.answer(_KEYS, lambda body: self._encode())

    @property
    def problem(self) -> Problem | None:
        """Why this worker cannot seal and open, for the operator; None when it can."""
        return None if self._sealing.ready else self._local.problem

    def start(self) -> None:
        """Start the green thread; call it after a fork."""
        self._worker.start(self._run)

    def stop(self) -> None:
        """End the green thread."""
        self._worker.stop()
        self._local.stop()

    def look(self) -> None:
        """Get the keys soon."""
        self._sealing.want_keys()

    def read(self) -> None:
        """Read the keys from the database now, see :meth:`KeyReader.read`."""
        self._local.read()
        self._local.stop()

    def _run(self) -> None:
        backoff = Backoff(*self.backoff)
        while True:
            leader = self._election.wait_leader(self.interval)
            if self._election.leading:
                break
            answer = b"" if leader is None else self._peers.ask(_KEYS, b"", self.timeout, slots=[leader]).get(leader)
            if answer:
                found = json.loads(answer)
                self._sealing.use(found["identity"], [Key.from_bytes(bytes.fromhex(key)) for key in found["keys"]])
                green.sleep(self.min_interval)
                self._sealing.wait_wanted(self.interval)
            else:
                green.sleep(backoff.next())
        self._local.start()

    def _encode(self) -> bytes:
        used = self._sealing.used
        if used is None:
            return b""
        identity, keys = used
        return json.dumps({"identity": identity, "keys": [key.secret.hex() for key in keys]}).encode()
