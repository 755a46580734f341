"""Sends and receives messages and descriptors over the Unix socket between two workers; knows nothing of the node.

A message is sent as packets, whose first byte tells whether another one continues the message. The second byte is the
length of the message's kind, which only the first packet has.
"""

import array
import contextlib
import errno
import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from socketio_pg.core import green

logger = logging.getLogger("socketio_pg.workers")

_socket: Any = green.plain_socket
#: Bytes of a body in one packet: far below the send buffer of a Unix socket (net.core.wmem_default, 212,992).
PART = 60_000
#: The first byte of a packet: whether another one continues its message.
_LAST, MORE = 0, 1
#: Errors of the descriptor that is passed, not of the socket.
_BAD_DESCRIPTOR = (errno.EBADF, errno.ETOOMANYREFS)
#: Bytes of the ancillary data with one descriptor.
_ROOM = _socket.CMSG_SPACE(array.array("i").itemsize)


@dataclass(eq=False, slots=True)
class Packet:
    """One packet, and a descriptor that goes with it."""

    data: bytes
    descriptor: int | None = None
    #: Is set when the packet was sent, or never will be.
    done: green.Event | None = None
    sent: bool = False


def packets(kind: str, body: bytes) -> Iterator[Packet]:
    """Return the packets of a message."""
    for start in range(0, len(body) or 1, PART):
        name = kind.encode() if start == 0 else b""
        more = MORE if start + PART < len(body) else _LAST
        yield Packet(bytes((more, len(name))) + name + body[start : start + PART])


class Outgoing:
    """The socket on which this worker sends to another one."""

    def __init__(self, slot: int, name: str, connection: Any, max_waiting: int) -> None:
        self.slot = slot
        self.name = name
        self.closed = False
        self._connection = connection
        self._max_waiting = max_waiting
        self._unsent: deque[Packet] = deque()
        self._waiting = 0
        #: Whether a green thread waits for the socket.
        self._sending = False

    def send(self, *packets: Packet) -> None:
        """Send packets as far as the socket takes them; a green thread sends the others."""
        if self.closed:
            return
        if self._waiting > self._max_waiting:  # before this message, which may be larger
            logger.error("worker %d does not read: disconnected", self.slot)
            self.close()
            return
        self._unsent.extend(packets)
        self._waiting += sum(len(packet.data) for packet in packets)
        if not self._sending and self._flush():
            self._sending = True
            green.run_soon(self._send_rest)

    def withdraw(self, packet: Packet) -> None:
        """Do not send a packet that still waits."""
        with contextlib.suppress(ValueError):
            self._unsent.remove(packet)
            self._waiting -= len(packet.data)

    @property
    def broken(self) -> bool:
        """Whether the other worker has closed its end, on which it never sends."""
        try:
            return not self.closed and not self._connection.recv(1, _socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Close the socket. Packets that were not sent are lost."""
        if self.closed:
            return
        self.closed = True
        if self._sending:
            with contextlib.suppress(OSError):
                self._connection.shutdown(_socket.SHUT_RDWR)  # wakes the green thread, which closes it
        else:
            self._connection.close()
        for packet in self._unsent:
            if packet.done is not None:
                packet.done.send()

    def _send_rest(self) -> None:
        while self._flush():
            green.wait_writable(self._connection.fileno())
        self._sending = False
        if self.closed:
            self._connection.close()

    def _flush(self) -> bool:
        """Send what the socket takes. Return whether it must be waited for."""
        while self._unsent and not self.closed:
            packet = self._unsent[0]
            rights = []
            if packet.descriptor is not None:
                rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", [packet.descriptor]))]
            try:
                self._connection.sendmsg([packet.data], rights)
                packet.sent = True
            except BlockingIOError:
                return True
            except OSError as error:
                if packet.descriptor is None or error.errno not in _BAD_DESCRIPTOR:
                    self.close()
                    return False
                logger.warning("a connection cannot be passed to worker %d: %s", self.slot, error)
            self._unsent.popleft()
            self._waiting -= len(packet.data)
            if packet.done is not None:
                packet.done.send()
        return False


def unix_socket() -> Any:
    """Return a new socket, which neither listens nor is connected, and never blocks."""
    # Keeps the borders of packets, so that a descriptor can never be taken for that of another packet, even if the
    # kernel cannot deliver one because this process has too many.
    made = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    made.setblocking(False)
    return made


def receive(connection: Any) -> tuple[bytes, list[int]]:
    """Wait for a packet and return its bytes, none at the end, and its descriptors."""
    while True:
        try:
            data, ancillary, _, _ = connection.recvmsg(PART + 1000, _ROOM, _socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            green.wait_readable(connection.fileno())
            continue
        except OSError:
            return b"", []
        received = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                received.frombytes(content[: len(content) - len(content) % received.itemsize])
        return data, list(received)
