"""Messages, questions and descriptors between the workers of a node, over Unix sockets.

    every worker ── one socket for sending ──► every other worker, which sends on its own

A socket keeps the order, and loses nothing while both workers live. When a worker ends, however it ends, the others
notice at once. A worker that does not read, while more than :attr:`Peers.max_waiting` bytes wait for it, is
disconnected at the next message, and connected anew.
"""

import contextlib
import errno
import itertools
import json
import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from socketio_pg.core import green
from socketio_pg.workers.loads import MAX_WORKERS
from socketio_pg.workers.node import Node
from socketio_pg.workers.sockets import MORE, PART, Outgoing, packets, receive, unix_socket

logger = logging.getLogger("socketio_pg.workers")

_HELLO, _QUESTION, _ANSWER = "hello", "?", "="
#: Packets that are read before other green threads run.
_READ_TOGETHER = 50

#: Gets the slot of the sender and the body.
Receiver = Callable[[int, bytes], object]
#: Gets the slot of the sender, the body, and a descriptor that it must close; None when this process has too many to
#: take it.
DescriptorReceiver = Callable[[int, bytes, int | None], object]


class Peers:
    """The other workers of the node.

    Receivers, answers and watchers are given before :meth:`start`. Receivers are called in the order of one sender's
    messages, and the next message waits until they return.
    """

    #: Bytes that may wait for one worker.
    max_waiting = 64_000_000
    #: Seconds between two looks for workers that are not connected.
    interval = 1.0
    #: Seconds for a descriptor to be taken.
    pass_timeout = 5.0
    #: Seconds for which this worker takes no descriptors after it could not take one.
    pause = 5.0

    def __init__(self, node: Node) -> None:
        self._node = node
        self._outgoing: dict[int, Outgoing] = {}
        #: The newest connection of each worker to this one, and the worker's name.
        self._incoming: dict[int, tuple[Any, str]] = {}
        self._receivers: dict[str, list[Receiver]] = {}
        self._descriptor_receivers: dict[str, DescriptorReceiver] = {}
        self._answers: dict[str, Callable[[bytes], bytes]] = {}
        self._watchers: list[Callable[[int, bool], object]] = []
        self._questions: dict[int, green.Queue] = {}
        self._numbers = itertools.count()
        self._workers = [green.Worker(), green.Worker()]
        self._listening: Any = None
        #: When a descriptor was lost, because this process has too many.
        self._lost_descriptor = -math.inf

    # -- before the start ----------------------------------------------------------------------------------------------

    def receive(self, kind: str, receiver: Receiver) -> None:
        """Call ``receiver`` with each message of this kind."""
        self._receivers.setdefault(kind, []).append(receiver)

    def receive_descriptors(self, kind: str, receiver: DescriptorReceiver) -> None:
        """Call ``receiver`` with each descriptor that is passed with this kind."""
        self._descriptor_receivers[kind] = receiver

    def answer(self, kind: str, function: Callable[[bytes], bytes]) -> None:
        """Answer questions of this kind with the result of ``function``, which runs in a green thread of its own."""
        self._answers[kind] = function

    def watch(self, watcher: Callable[[int, bool], object]) -> None:
        """Call ``watcher(slot, here)`` when a worker has joined (True) or has left (False)."""
        self._watchers.append(watcher)

    # -- running -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Claim a slot, listen, and connect to the others. Call it after the fork.

        Raises :class:`ConfigurationError` when the node has no free slot.
        """
        self._node.join()
        # A late answer to the predecessor in this slot must not answer a question of this worker.
        self._numbers = itertools.count(secrets.randbits(62))
        path = self._node.socket_path(self._node.slot)
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()  # of a predecessor
        self._listening = unix_socket()
        self._listening.bind(path)
        self._listening.listen(MAX_WORKERS * 2)
        self._workers[0].start(self._accept)
        self._connect_all()
        self._workers[1].start(self._keep_connected)

    def stop(self) -> None:
        """Leave the node, for tests: the kernel closes the sockets of a process that ends."""
        for worker in self._workers:
            worker.stop()
        self._listening.close()
        for outgoing in list(self._outgoing.values()):
            self._lose(outgoing)
        for connection, _ in self._incoming.values():
            with contextlib.suppress(OSError):
                connection.shutdown(green.SHUT_RDWR)
        self._node.leave()

    @property
    def slots(self) -> Collection[int]:
        """The slots of the other workers that are here."""
        return self._outgoing.keys()

    @property
    def takes_descriptors(self) -> bool:
        """Whether this process seems to have room for further descriptors."""
        return time.monotonic() - self._lost_descriptor > self.pause

    def slot_of(self, name: str) -> int | None:
        """Return the slot of the worker of this name, also of this one; None when it is not here.

        Connects to one that has not said its name yet: one of the two has just started, and serves clients already.
        """
        if name == self._node.name.hex():
            return self._node.slot
        found = next((one.slot for one in self._outgoing.values() if name and one.name == name), None)
        return self._slot_of_stranger(name) if found is None else found

    def _slot_of_stranger(self, name: str) -> int | None:
        slot = self._node.loads.slot_of(bytes.fromhex(name))
        if slot is None or self._listening is None:
            return None
        outgoing = self._outgoing.get(slot)
        if outgoing is not None and (outgoing.name or outgoing.broken):
            self._lose(outgoing)  # a predecessor
        if slot not in self._outgoing:
            self._connect(slot)
            if self._incoming.get(slot, (None, ""))[1] == name:  # it has said its name, and does not say it again
                self._name(slot, name)
        return slot if slot in self._outgoing else None

    # -- sending -------------------------------------------------------------------------------------------------------

    def tell(self, kind: str, body: bytes) -> None:
        """Send a message to all other workers. Does not wait."""
        for slot in list(self._outgoing):
            self.send(slot, kind, body)

    def send(self, slot: int, kind: str, body: bytes) -> bool:
        """Send a message to one worker. Does not wait. Return whether the worker is here."""
        outgoing = self._outgoing.get(slot)
        if outgoing is None:
            return False
        outgoing.send(*packets(kind, body))
        if outgoing.closed:
            self._lose(outgoing)
        return not outgoing.closed

    def pass_descriptor(self, slot: int, kind: str, body: bytes, descriptor: int) -> bool:
        """Pass a descriptor, which the caller still has to close, with a body of :data:`PART` bytes at most.

        Waits until it is sent. Return False when the worker is not here or does not take it: it never gets it then.
        """
        outgoing = self._outgoing.get(slot)
        if outgoing is None:
            return False
        assert len(body) <= PART
        packet = next(packets(kind, body))
        packet.descriptor, packet.done = descriptor, green.Event()
        outgoing.send(packet)
        if outgoing.closed:
            self._lose(outgoing)
            return False
        try:
            with contextlib.suppress(green.TimedOut):
                packet.done.wait(self.pass_timeout)
        finally:
            outgoing.withdraw(packet)  # if it still waits: before the caller closes the descriptor
        return packet.sent

    def ask(self, kind: str, body: bytes, seconds: float, slots: Collection[int] | None = None) -> dict[int, bytes]:
        """Ask all other workers, or those in ``slots``. Return the answers that arrive within ``seconds``, by slot."""
        number = next(self._numbers)
        answers = self._questions[number] = green.Queue()
        asked = {
            slot
            for slot in list(self._outgoing if slots is None else slots)
            if self.send(slot, _QUESTION, _numbered(number, kind.encode() + b"\n" + body))
        }
        found: dict[int, bytes] = {}
        try:
            with contextlib.suppress(green.TimedOut), green.timeout(seconds):
                while asked - found.keys():
                    slot, answer = answers.get()
                    if answer is None:
                        asked.discard(slot)
                    else:
                        found[slot] = answer
        finally:
            del self._questions[number]
        return found

    # -- connections ---------------------------------------------------------------------------------------------------

    def _keep_connected(self) -> None:
        while True:
            green.sleep(self.interval)
            self._connect_all()

    def _connect_all(self) -> None:
        for slot in self._node.slots_with_sockets():
            if slot != self._node.slot and slot not in self._outgoing:
                self._connect(slot)
                if slot in self._incoming:  # the other worker has said who it is, and does not say it again
                    self._name(slot, self._incoming[slot][1])

    def _connect(self, slot: int) -> None:
        connection = unix_socket()
        try:
            connection.connect(self._node.socket_path(slot))
        except OSError:  # no worker has this slot, or too many connect to it at once
            connection.close()
            return
        outgoing = self._outgoing[slot] = Outgoing(slot, "", connection, self.max_waiting)
        self._introduce(outgoing)

    def _introduce(self, outgoing: Outgoing, *, again: bool = False) -> None:
        hello = {"slot": self._node.slot, "name": self._node.name.hex(), "again": again}
        outgoing.send(*packets(_HELLO, json.dumps(hello).encode()))
        if outgoing.closed:
            self._lose(outgoing)

    def _accept(self) -> None:
        while True:
            green.wait_readable(self._listening.fileno())
            try:
                connection, _ = self._listening.accept()
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    logger.warning("another worker cannot connect: %s", error)
                    green.sleep(0.1)
                continue
            connection.setblocking(False)
            green.run_soon(self._read, connection)

    def _read(self, connection: Any) -> None:
        """Receive from one worker until it ends or closes the connection."""
        slot, name = -1, ""
        kind = ""
        parts: list[bytes] = []
        try:
            for number in itertools.count(1):
                data, descriptors = receive(connection)
                if not data:
                    return
                if number % _READ_TOGETHER == 0:
                    green.sleep()
                more, length = data[0], data[1]
                if length:
                    kind, parts = data[2 : 2 + length].decode(), []
                parts.append(data[2 + length :])
                if more == MORE:
                    continue
                body = b"".join(parts)
                if kind == _HELLO:
                    hello = json.loads(body)
                    slot, name = hello["slot"], hello["name"]
                    self._incoming[slot] = connection, name
                    self._meet(slot, name, again=hello["again"])
                else:
                    self._dispatch(slot, kind, body, descriptors)
        except Exception:  # a bug: the workers connect again
            logger.exception("receiving from worker %d failed", slot)
        finally:
            connection.close()
            # A worker that has connected anew meanwhile is still here.
            if self._incoming.get(slot, (None, ""))[0] is connection:
                del self._incoming[slot]
                self._find_out(slot, name)

    def _find_out(self, slot: int, name: str) -> None:
        """Lose a worker whose connection has ended if it has ended too.

        It may as well have closed only this one, because this worker did not read, and connect anew. To close the other
        one then would make it close its new one, and so on for ever.
        """
        for pause in (0.0, 0.001, 0.01, 0.1):  # a process that ends closes both one after the other
            green.sleep(pause)
            outgoing = self._outgoing.get(slot)
            if outgoing is None or outgoing.name != name or slot in self._incoming:
                return
            if outgoing.broken:
                self._lose(outgoing)
                return
        for answers in self._questions.values():  # answers may be lost
            answers.put((slot, None))

    def _meet(self, slot: int, name: str, *, again: bool) -> None:
        """Note that a worker has connected to this one; ``again``: it had, and answers that this one has connected."""
        outgoing = self._outgoing.get(slot)
        if outgoing is not None and outgoing.name != name and (outgoing.name or outgoing.broken):
            self._lose(outgoing)  # its predecessor, which may have ended without a word
            outgoing = None
        if outgoing is None:
            self._connect(slot)
        elif outgoing.name == name and not again:
            # It has connected anew, and forgotten who this worker is.
            self._introduce(outgoing, again=True)
        self._name(slot, name)

    def _name(self, slot: int, name: str) -> None:
        """Note the name of a worker to which this one has connected. It says its name when it connects to this one."""
        outgoing = self._outgoing.get(slot)
        if outgoing is not None:
            outgoing.name = name
            self._tell_watchers(slot, True)

    def _lose(self, outgoing: Outgoing) -> None:
        outgoing.close()
        if self._outgoing.get(outgoing.slot) is outgoing:
            del self._outgoing[outgoing.slot]
            for answers in self._questions.values():
                answers.put((outgoing.slot, None))
            if outgoing.name:
                self._tell_watchers(outgoing.slot, False)

    def _tell_watchers(self, slot: int, here: bool) -> None:
        for watcher in self._watchers:
            try:
                watcher(slot, here)
            except Exception:  # a bug: the other watchers must learn of it
                logger.exception("noting that worker %d %s failed", slot, "joined" if here else "left")

    # -- messages ------------------------------------------------------------------------------------------------------

    def _dispatch(self, slot: int, kind: str, body: bytes, descriptors: list[int]) -> None:
        takes = self._descriptor_receivers.get(kind)
        if takes is not None:
            # To take a connection over, another descriptor may be needed.
            if not descriptors or not _has_room(descriptors[0]):
                if self.takes_descriptors:
                    logger.error("this process has too many descriptors: a connection from worker %d is lost", slot)
                self._lost_descriptor = time.monotonic()
                for descriptor in descriptors:
                    os.close(descriptor)
                descriptors = []
            _guarded(takes, slot, body, descriptors[0] if descriptors else None)
            return
        for descriptor in descriptors:  # none was sent
            os.close(descriptor)
        if kind == _QUESTION:
            green.run_soon(self._answer, slot, body)
        elif kind == _ANSWER:
            number, answer = _split(body)
            questions = self._questions.get(number)
            if questions is not None:  # not too late
                questions.put((slot, answer))
        for receiver in self._receivers.get(kind, ()):
            _guarded(receiver, slot, body)

    def _answer(self, slot: int, body: bytes) -> None:
        number, question = _split(body)
        kind, _, argument = question.partition(b"\n")
        function = self._answers.get(kind.decode())
        if function is not None:
            self.send(slot, _ANSWER, _numbered(number, function(argument)))


def _guarded(function: Callable[..., object], *arguments: object) -> None:
    try:
        function(*arguments)
    except Exception:  # a bug in the receiver: the next messages must arrive
        logger.exception("handling a message of another worker failed")


def _has_room(descriptor: int) -> bool:
    """Return whether this process can have another descriptor."""
    try:
        os.close(os.dup(descriptor))
    except OSError:
        return False
    return True


def _numbered(number: int, body: bytes) -> bytes:
    return number.to_bytes(8, "big") + body


def _split(body: bytes) -> tuple[int, bytes]:
    return int.from_bytes(body[:8], "big"), body[8:]
