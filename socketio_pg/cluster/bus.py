"""The bus: messages and questions between all processes of a cluster, and the processes that are there.

Workers of one node use the sockets between them; other nodes are told with NOTIFY, or over the broker of MESSAGE_QUEUE.
While there is no other node, nothing is sent to the database but a beat now and then. docs/architecture.md describes
how processes find each other.
"""

import itertools
import json
import logging
import math
import os
import secrets
import socket
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeAlias

from socketio_pg.cluster.carriers import Carrier
from socketio_pg.cluster.processes import Answers, Process, Processes, ProcessId
from socketio_pg.cluster.sending import HELLO, Sending
from socketio_pg.core import green, metrics
from socketio_pg.core.errors import PayloadTooLargeError
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.workers.workers import Workers

logger = logging.getLogger("socketio_pg.bus")
_limited_log = RateLimitedLog(logger)

#: The kind of the workers' messages.
_PEERS = "bus"
#: The first elements of the items in a text.
_BEAT, _MESSAGE, _QUESTION, _ANSWER, _BYE = "beat", "message", "question", "answer", "bye"

#: Where the id of the node is in a text, after that of the process.
_NODE_AT = len('[["",') + 32

#: Gets the sender and the body.
Receiver: TypeAlias = Callable[[ProcessId, Any], object]


class Bus:
    """Sends to all other processes: in order for each sender, and each message at most once.

    Receivers, answers and watchers are given before :meth:`start`. They run in the green threads that receive, and must
    not wait; answers have a green thread of their own. They get JSON values of processes that have the cluster key.
    """

    #: Seconds between two regular beats, and how many of them are left out while there is no other node.
    interval = 3.0
    alone = 5
    #: The maximum size of a body, in characters of JSON.
    max_characters = 4_000_000
    #: Seconds for the last messages at the end; and to hear which other workers of the node stop as well.
    stop_seconds, bye_seconds = 2.0, 0.05

    def __init__(self, carrier: Carrier, workers: Workers | None = None) -> None:
        self._carrier = carrier
        self._workers = workers
        self._peers = None if workers is None else workers.peers
        self._processes = Processes(self._on_joined, self._on_left)
        self._own: Process | None = None
        self._home = green.HomeThread()
        self._receivers: dict[str, list[Receiver]] = {}
        self._answers: dict[str, Callable[[ProcessId, Any], Any]] = {}
        self._gap_watchers: list[Callable[[], object]] = []
        self._join_watchers: list[Callable[[Process], object]] = []
        self._left_watchers: list[Callable[[Process], object]] = []
        self._questions: dict[int, green.Queue] = {}
        self._numbers = itertools.count(secrets.randbits(52))
        self._sending = Sending(carrier, lambda: self.own)
        #: A beat waits that was not a regular one.
        self._beat_waits = False
        self._stopping = False
        #: When a regular beat of this node has last come back (monotonic).
        self._ticked_at = -math.inf
        #: Slots of workers that have said bye.
        self._stopped_slots: set[int] = set()
        self._beater = green.Worker()
        if self._peers is not None:
            self._peers.receive(_PEERS, self._hear_worker)
            self._peers.watch(self._on_worker)

    # -- before the start ----------------------------------------------------------------------------------------------

    def receive(self, kind: str, receiver: Receiver) -> None:
        """Call ``receiver(sender, body)`` with each message of this kind of another process."""
        self._receivers.setdefault(kind, []).append(receiver)

    def answer(self, kind: str, function: Callable[[ProcessId, Any], Any]) -> None:
        """Answer questions of this kind with the result of ``function(sender, body)``, a JSON value. It may wait."""
        self._answers[kind] = function

    def on_gap(self, function: Callable[[], object]) -> None:
        """Call ``function`` when messages may have been missed: here, or those of this process by others."""
        self._gap_watchers.append(function)

    def on_joined(self, function: Callable[[Process], object]) -> None:
        """Call ``function`` with each process that is heard for the first time. Its earlier messages were missed."""
        self._join_watchers.append(function)

    def on_left(self, function: Callable[[Process], object]) -> None:
        """Call ``function`` with each process that has ended, or was not heard for about 12 seconds."""
        self._left_watchers.append(function)

    # -- running -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to send and receive. Call it after the fork, and after the start of the workers and of PubSub."""
        if self._own is not None:
            return
        self._home.reset()
        self._home.require("Bus.start()")
        if self._workers is None:
            node, slot, pid = uuid.uuid4().hex, None, os.getpid()
        else:
            node, slot, pid = self._workers.node.id.hex, self._workers.node.slot, self._workers.node.master
        self._own = Process(uuid.uuid4().hex, node, f"{socket.gethostname()}:{pid}", slot, round(time.time(), 3))
        if self._peers is not None:
            for other in list(self._peers.slots):
                self._introduce(other)
        self._carrier.start(self._hear, self._missed)
        self._sending.start()
        self._beater.start(self._beat_regularly)

    def stop(self) -> None:
        """Send what waits, and say bye. Idempotent."""
        if self._own is None or self._stopping:
            return
        self._stopping = True
        self._beater.stop()
        # Others ignore what a process sends after it has left.
        self._sending.wait_idle(self.stop_seconds)
        self._sending.leaving = True
        if self._peers is not None:
            self._peers.tell(_PEERS, self._text(json.dumps([_BYE])))
            # All workers may stop now: each hears who else does, so that one of them says that the last ones leave.
            green.sleep(self.bye_seconds)
        if self._beats and self._sending.greeted:
            self._sending.put(self._beat(tick=False))
            self._sending.wait_idle(self.stop_seconds)
        self._sending.stop()

    @property
    def own(self) -> Process:
        """This process. Only after :meth:`start`."""
        assert self._own is not None
        return self._own

    @property
    def processes(self) -> list[Process]:
        """The other processes that are there: other workers of this node, and those of other nodes."""
        return self._processes.all()

    @property
    def has_other_nodes(self) -> bool:
        """Whether there is a process of another node, or may be one: it is not known in the first second."""
        if self._own is None or not self._sending.greeted:
            return False  # what is told now reaches nobody: others have not heard of this process
        return not self._sending.settled or self._processes.has_others(self._own.node)

    @property
    def idle(self) -> bool:
        """Whether everything has been sent to other nodes."""
        return self._sending.idle

    # -- sending -------------------------------------------------------------------------------------------------------

    def tell(self, kind: str, body: Any) -> None:
        """Send ``body``, a JSON value, to all other processes. Does not wait.

        Raises :class:`PayloadTooLargeError` when it has more than :attr:`max_characters` as JSON.
        """
        encoded = self._encoded(body)
        if self._own is None:
            return
        number = self._sending.next_number()
        item = f"[{json.dumps(_MESSAGE)},{number},{json.dumps(kind)},{encoded}]"
        if self._peers is not None and self._peers.slots:
            self._peers.tell(_PEERS, self._text(item))
        if self.has_other_nodes:
            self._sending.put(item, number)
        else:
            self._sending.skip()

    def ask(self, kind: str, body: Any, seconds: float) -> Answers:
        """Ask all other processes. Return the answers that arrive within ``seconds``, and which did not answer.

        Raises :class:`PayloadTooLargeError` as :meth:`tell` does.
        """
        self._home.require("Bus.ask()")
        number = next(self._numbers)
        item = f"[{json.dumps(_QUESTION)},{number},{json.dumps(kind)},{self._encoded(body)}]"
        asked = {process.id: process for process in self._processes.all()}
        found: dict[ProcessId, Any] = {}
        if not asked:
            return Answers(found, [])
        answers = self._questions[number] = green.Queue()
        if self._peers is not None:
            self._peers.tell(_PEERS, self._text(item))
        if self.has_other_nodes:
            self._sending.put(item)
        waiting = set(asked)
        deadline = time.monotonic() + seconds
        try:
            while waiting:
                with green.timeout(max(0.0, deadline - time.monotonic())):
                    sender, answer = answers.get()
                waiting.discard(sender)
                if answer and sender in asked:
                    found[sender] = answer[0]
        except green.TimedOut:
            pass
        finally:
            del self._questions[number]
        return Answers(found, [process for id, process in asked.items() if id not in found])

    def _encoded(self, body: Any) -> str:
        encoded = json.dumps(body, separators=(",", ":"))
        if len(encoded) > self.max_characters:
            raise PayloadTooLargeError(
                f"the message has {len(encoded)} characters of JSON; the maximum is {self.max_characters}"
            )
        return encoded

    def _text(self, *items: str) -> bytes:
        return self._sending.text(items).encode()

    # -- beats ---------------------------------------------------------------------------------------------------------

    @property
    def _beats(self) -> bool:
        """Whether this process sends the beats of its node: the worker with the lowest slot that knows all others."""
        if self._peers is None:
            return True
        own = self.own
        known = {process.worker for process in self._processes.of(own.node)}
        if not set(self._peers.slots) <= known | self._stopped_slots:
            return False
        return own.worker == min({own.worker} | known, key=lambda slot: -1 if slot is None else slot)

    def _beat_regularly(self) -> None:
        for count in itertools.count(1):
            green.sleep(self.interval)
            due = self._processes.has_others(self.own.node) or count % self.alone == 0
            if due and self._beats and self._sending.greeted:
                self._sending.put(self._beat(tick=True))

    def _beat_soon(self) -> None:
        """Tell other nodes which processes this one has, unless they do not know this process yet."""
        if self._sending.greeted and self._beats and not self._beat_waits:
            self._beat_waits = True
            green.run_soon(self._put_beat)

    def _put_beat(self) -> None:
        self._beat_waits = False
        self._sending.put(self._beat(tick=False))

    def _beat(self, *, tick: bool) -> str:
        own = [] if self._stopping else [self.own]
        named = [process.to_wire() for process in own + self._processes.of(self.own.node)]
        # With its own time: it may wait until it is sent.
        return json.dumps([_BEAT, time.monotonic(), tick, named], separators=(",", ":"))

    # -- receiving -----------------------------------------------------------------------------------------------------

    def _hear(self, text: str) -> None:
        """Receive a text of any node, also of this one."""
        own = self.own
        if text.startswith(f'"{own.node}"', _NODE_AT) and f'["{_BEAT}",' not in text and self._sending.heard:
            return  # of this node, and nothing in it matters here
        try:
            [wire, at, number, skipped, leaves], items = json.loads(text)
            sender = Process.from_wire(wire)
            if sender.node == own.node:
                self._hear_own(sender, items)
                return
            known = self._processes.hear(sender, float(at), leaves=bool(leaves))
            for item in items:
                if item[0] == _BEAT:
                    named = [Process.from_wire(one) for one in item[3]]
                    self._processes.beat(sender, float(item[1]), [one for one in named if one.node == sender.node])
                elif not known:
                    continue
                elif item[0] == HELLO:
                    self._beat_soon()
                elif item[0] == _MESSAGE:
                    new, complete = self._processes.count(sender.id, int(item[1]))
                    if not complete:
                        self._missed_some()
                    if new:
                        self._dispatch(sender, item)
                else:
                    self._dispatch(sender, item)
            if not self._processes.reached(sender.id, int(number), bool(skipped)):
                self._missed_some()
        except (ValueError, TypeError, IndexError, KeyError, RecursionError):
            self._ignore("another node")

    def _hear_own(self, sender: Process, items: list[Any]) -> None:
        """Note that a text of this node has come back: this process can hear."""
        if sender.id == self.own.id:
            self._sending.come_back()
        if any(item[0] == _BEAT and item[2] for item in items):
            now = time.monotonic()
            late = now - self._ticked_at > self.interval * (self._processes.patience - 1)
            self._ticked_at = now
            if late and self._processes.has_others(self.own.node):
                # Others may have taken this one for dead, and it may have missed their beats.
                self._processes.excuse()
                self._missed_some()
            self._processes.tick(self.own.node)

    def _hear_worker(self, slot: int, text: bytes) -> None:
        """Receive a text of another worker of this node."""
        if self._own is None:
            return
        try:
            [wire, *_], items = json.loads(text)
            sender = Process.from_wire(wire)
            if not self._processes.has(sender.id) and [_BYE] not in items:
                self._processes.leave([one for one in self._processes.of(self.own.node) if one.worker == slot])
                self._stopped_slots.discard(slot)
                self._processes.meet(sender)
                self._introduce(slot)
                self._beat_soon()
            for item in items:
                if item[0] == _BYE:
                    self._stopped_slots.add(slot)
                    self._processes.leave([sender])
                    self._beat_soon()
                else:
                    self._dispatch(sender, item)
        except (ValueError, TypeError, IndexError, KeyError, RecursionError):
            self._ignore(f"worker {slot}")

    def _dispatch(self, sender: Process, item: list[Any]) -> None:
        metrics.bus_messages.labels("received").inc()
        if item[0] == _MESSAGE:
            _, _, kind, body = item
            for receiver in self._receivers.get(kind, ()):
                _guarded(receiver, sender.id, body)
        elif item[0] == _QUESTION:
            _, number, kind, body = item
            green.run_soon(self._answer, sender, number, kind, body)
        elif item[0] == _ANSWER:
            _, asker, number, *answer = item
            answers = self._questions.get(number)
            if asker == self.own.id and answers is not None:
                answers.put((sender.id, answer))

    def _answer(self, sender: Process, number: int, kind: str, body: Any) -> None:
        answer = [_ANSWER, sender.id, number]
        function = self._answers.get(kind)
        item = json.dumps(answer)
        try:
            if function is not None:  # a newer version may ask more
                item = f"{item[:-1]},{self._encoded(function(sender.id, body))}]"
        except green.FAILURES:
            logger.exception("answering another process failed")
        if self._peers is not None and sender.node == self.own.node:
            assert sender.worker is not None
            self._peers.send(sender.worker, _PEERS, self._text(item))
        else:
            self._sending.put(item)

    def _ignore(self, sender: str) -> None:
        metrics.bus_dropped.labels("invalid").inc()
        _limited_log(logging.WARNING, "ignored an invalid text of %s on the bus", sender)

    # -- changes -------------------------------------------------------------------------------------------------------

    def _missed(self) -> None:
        """Note that the connection was lost and is back: greet the others again, so that they tell what they are."""
        self._processes.excuse()
        self._ticked_at = time.monotonic()
        self._sending.greet()
        self._missed_some()

    def _missed_some(self) -> None:
        for function in self._gap_watchers:
            _guarded(function)

    def _introduce(self, slot: int) -> None:
        assert self._peers is not None
        self._peers.send(slot, _PEERS, self._text())

    def _on_worker(self, slot: int, here: bool) -> None:
        if self._own is None:
            return
        if here:
            self._introduce(slot)
        else:
            self._stopped_slots.discard(slot)
            self._processes.leave([one for one in self._processes.of(self._own.node) if one.worker == slot])
            self._beat_soon()

    def _on_joined(self, process: Process) -> None:
        if process.node != self.own.node and len({one.node for one in self._processes.all()} - {self.own.node}) == 1:
            # So far nothing was sent: the others learn from the number of the next text which messages they missed.
            self._sending.mark()
            self._ticked_at = time.monotonic()
        for function in self._join_watchers:
            _guarded(function, process)

    def _on_left(self, process: Process) -> None:
        for answers in self._questions.values():
            answers.put((process.id, ()))
        for function in self._left_watchers:
            _guarded(function, process)


def _guarded(function: Callable[..., object], *arguments: object) -> None:
    try:
        function(*arguments)
    except Exception:  # a bug in the receiver: the next messages must arrive
        logger.exception("handling a message of another process failed")
