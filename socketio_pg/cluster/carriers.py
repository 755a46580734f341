"""How texts get from one node to all others: sealed, with NOTIFY or over the broker of MESSAGE_QUEUE."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from socketio_pg.cluster.chunks import Assembler, split
from socketio_pg.cluster.kafka import KafkaCluster
from socketio_pg.cluster.queue_manager import Command
from socketio_pg.cluster.redis import RedisCluster
from socketio_pg.core.channels import NODES_CHANNEL
from socketio_pg.core.errors import SocketIOPGError
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.core.sealing import Sealing
from socketio_pg.pubsub.pubsub import PubSub

_limited_log = RateLimitedLog(logging.getLogger("socketio_pg.cluster"))

#: The kind of message on the broker.
_METHOD = "bus"
#: Characters of a part on the broker; Kafka takes 1,000,000 bytes, and sealing makes a third more of it.
_BROKER_PART = 400_000
#: Senders of which incomplete texts are kept.
_MAX_SENDERS = 1000


class Carrier(Protocol):
    """Carries texts, which are ASCII, to all nodes including this one: in order, and each at most once."""

    def start(self, receive: Callable[[str], None], on_gap: Callable[[], None]) -> None:
        """Begin to receive. ``on_gap`` is called when texts may have been missed. Call it after the fork."""

    def wait(self, seconds: float) -> bool:
        """Wait until texts can be sent and are received, as far as can be known. Return False after ``seconds``."""

    def send(self, texts: Sequence[str]) -> bool:
        """Send texts. Waits. Return whether they were sent; if not, some may have been."""


class NotifyCarrier:
    """Carries them with NOTIFY in parts, on the connections that every server has."""

    def __init__(self, pubsub: PubSub) -> None:
        self._pubsub = pubsub
        self._sealing = pubsub.sealing
        self._assembler = Assembler()
        self._receive: Callable[[str], None] = _ignore

    def start(self, receive: Callable[[str], None], on_gap: Callable[[], None]) -> None:
        self._receive = receive
        self._pubsub.receive_reserved(NODES_CHANNEL, self._hear, on_gap)

    def wait(self, seconds: float) -> bool:
        try:
            self._pubsub.listener.wait(NODES_CHANNEL, seconds)
        except SocketIOPGError:
            return False
        return self._sealing.wait_ready(seconds)

    def send(self, texts: Sequence[str]) -> bool:
        try:
            parts = [self._sealing.seal(NODES_CHANNEL, part) for text in texts for part in split(text)]
            self._pubsub.publish_reserved(NODES_CHANNEL, parts)
        except SocketIOPGError as error:
            _limited_log(logging.WARNING, "other nodes cannot be told anything: %s", error)
            return False
        return True

    def _hear(self, sealed: Sequence[str]) -> None:
        for one in sealed:
            part = self._sealing.open(NODES_CHANNEL, one)
            text = None if part is None else self._assembler.add(part)
            if text is not None:
                self._receive(text)


class BrokerCarrier:
    """Carries them over Redis, Valkey or Kafka, with the client manager's connections. It seals them."""

    def __init__(self, broker: RedisCluster | KafkaCluster, sealing: Sealing) -> None:
        self._broker = broker
        self._sealing = sealing
        #: The parts of different senders may arrive interleaved.
        self._assemblers: OrderedDict[str, Assembler] = OrderedDict()

    def start(self, receive: Callable[[str], None], on_gap: Callable[[], None]) -> None:
        def hear(command: Command) -> None:
            text = self._assembler(str(command["sender"])).add(str(command["part"]))
            if text is not None:
                receive(text)

        self._broker.receive(_METHOD, hear)
        self._broker.watch_gaps(on_gap)

    def wait(self, seconds: float) -> bool:
        return self._sealing.wait_ready(seconds)

    def send(self, texts: Sequence[str]) -> bool:
        return all(self._broker.send(command) for command in self._commands(texts))

    def _commands(self, texts: Sequence[str]) -> Iterator[Command]:
        for text in texts:
            for part in split(text, _BROKER_PART):
                yield {"method": _METHOD, "sender": self._broker.host_id, "part": part}

    def _assembler(self, sender: str) -> Assembler:
        found = self._assemblers.setdefault(sender, Assembler())
        self._assemblers.move_to_end(sender)
        while len(self._assemblers) > _MAX_SENDERS:
            self._assemblers.popitem(last=False)
        return found


def _ignore(text: str) -> None:
    """Receive nothing before the start."""
