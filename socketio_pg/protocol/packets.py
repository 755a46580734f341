"""Socket.IO packets as clients send them: what the protocol document has, to the letter, and nothing else. No I/O.

What is no packet at all raises :class:`NotAPacketError`, and ends its connection. What is one, and asks for nonsense,
is answered: that is `protocol`'s business.
"""

import gc
import json
import re
from collections.abc import Callable
from typing import Any

import orjson
import socketio

from socketio_pg.core.errors import InvalidRequestError, SocketIOPGError
from socketio_pg.core.messages import WireJSON

CONNECT, DISCONNECT, EVENT, ACK, CONNECT_ERROR, BINARY_EVENT, BINARY_ACK = range(7)

#: Attachments of one binary packet at most. Their bytes together are bounded as those of one packet are.
MAX_ATTACHMENTS = 16
#: Characters of a namespace at most: it is sent back.
MAX_NAMESPACE = 255
#: No client counts further: the integers that JavaScript has.
MAX_ID = 2**53 - 1
#: Lists and objects in one packet at most: a million bytes could be 300,000 of them, and 50 ms.
MAX_CONTAINERS = 100_000
#: Characters up to which what is no strict JSON is read all the same, to be answered with its own code.
LENIENT_CHARACTERS = 65_536

_HEAD = re.compile(r"(?:([0-4])|([56])([0-9]{1,10})-)")
_ID = re.compile(r"[0-9]{0,16}")
#: Where a number may begin, 19 digits: perhaps more than 64 bits.
_LONG_NUMBER = re.compile(r"(?:\A|[\[,:])\s*-?[0-9]{19}")


class NotAPacketError(InvalidRequestError):
    """This is nothing that a Socket.IO client sends: the connection cannot go on."""


class UnreadableError(InvalidRequestError):
    """The packet's JSON is not read: it is too large to find out what is wrong with it, or has too many parts."""


class Packet(socketio.packet.Packet):  # type: ignore[misc]
    """A Socket.IO packet that carries strict JSON. A class of its own, because ``json`` is a class attribute."""

    json = WireJSON

    #: Characters of what was read, and bytes of its attachments.
    size = 0
    #: Called before the data of an event is read, which can be dear; raises to leave it unread.
    before_data: Callable[["Packet"], None] | None = None
    #: Why the data of an event was not read; None when it was.
    unread: SocketIOPGError | None = None

    @property
    def is_binary(self) -> bool:
        """Whether attachments follow."""
        return self.packet_type in (BINARY_EVENT, BINARY_ACK)

    def decode(self, encoded_packet: str) -> int:
        """Read ``encoded_packet``; returns the number of attachments. Raises :class:`NotAPacketError`."""
        head = _HEAD.match(encoded_packet) if isinstance(encoded_packet, str) else None
        if head is None:
            raise NotAPacketError("this is not a Socket.IO packet")
        self.size = len(encoded_packet)
        self.packet_type = int(head[1] or head[2])
        attachments = int(head[3] or 0)
        if self.is_binary and not 1 <= attachments <= MAX_ATTACHMENTS:
            # Without any, the next packet would be taken for one.
            raise NotAPacketError(f"a binary packet has 1 to {MAX_ATTACHMENTS} attachments")
        if self.packet_type == CONNECT_ERROR:
            raise NotAPacketError("clients send no CONNECT_ERROR")
        start = head.end()
        self.namespace = None
        if encoded_packet.startswith("/", start):
            end = encoded_packet.find(",", start, start + MAX_NAMESPACE + 1)
            name = encoded_packet[start:] if end < 0 else encoded_packet[start:end]
            self.namespace = name.partition("?")[0]
            if len(name) > MAX_NAMESPACE or not name.isprintable():
                raise NotAPacketError("this is not a namespace")
            start = len(encoded_packet) if end < 0 else end + 1
        id = _ID.match(encoded_packet, start)
        assert id is not None
        self.id = int(id[0]) if id[0] else None
        if self.id is not None and self.id > MAX_ID:
            raise NotAPacketError("this is not the id of an acknowledgement")
        self.data = None
        try:
            if self.before_data is not None and self.packet_type in (EVENT, BINARY_EVENT):
                self.before_data(self)
        except SocketIOPGError as error:
            self.unread = error
            return attachments
        text = encoded_packet[id.end() :]
        if text:
            try:
                self.data = read_json(text)
            except UnreadableError as error:
                if self.packet_type != EVENT:
                    raise NotAPacketError(error.message) from None
                self.unread = error
                return 0
        self._check(has_data=bool(text))
        return attachments

    def _check(self, *, has_data: bool) -> None:
        if self.packet_type == DISCONNECT and has_data:
            raise NotAPacketError("DISCONNECT has no data")
        if self.packet_type in (EVENT, BINARY_EVENT) and (not isinstance(self.data, list) or not self.data):
            raise NotAPacketError("an event is a list that starts with its name")
        if self.packet_type in (ACK, BINARY_ACK) and not isinstance(self.data, list):
            raise NotAPacketError("an acknowledgement is a list")

    def add_attachment(self, attachment: Any) -> bool:
        """One more of the attachments; whether it was the last. Raises :class:`NotAPacketError`."""
        if not isinstance(attachment, bytes):
            raise NotAPacketError("an attachment was announced, and this is none")
        self.attachments.append(attachment)
        self.size += len(attachment)
        if len(self.attachments) < self.attachment_count:
            return False
        if self.unread is None:
            self.data = _with_attachments(self.data, self.attachments)
        return True


def read_json(text: str) -> Any:
    """The value of ``text``: strict JSON of any size, and up to 64 KB what Python's parser takes besides (NaN, lone
    surrogates): handlers find that, and answer it with its code.

    Raises :class:`UnreadableError` for what is longer or has too many parts, and :class:`NotAPacketError`.
    """
    if text.count("[") + text.count("{") > MAX_CONTAINERS:
        raise UnreadableError(f"this has over {MAX_CONTAINERS} lists and objects")
    # Thousands of new lists let the garbage collector look at all of them over and over.
    collecting = gc.isenabled()
    gc.disable()
    try:
        value = orjson.loads(text)
        # It makes floats of integers over 64 bits; they are rare, and worth the slower parser.
        return json.loads(text) if _LONG_NUMBER.search(text) else value
    except (ValueError, RecursionError):
        if len(text) > LENIENT_CHARACTERS:
            raise UnreadableError("this is not strict JSON") from None
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise NotAPacketError("this is not JSON, or nested too deeply") from None
    finally:
        if collecting:
            gc.enable()


def _with_attachments(data: Any, attachments: list[bytes]) -> Any:
    """``data`` with each attachment in the place of its placeholder. Raises :class:`NotAPacketError`.

    Each has one place: clients number them as they come upon them.
    """
    places = 0
    result = [data]
    # Not recursive: how deep it goes is the client's choice.
    waiting: list[Any] = [result]
    left: list[bytes | None] = list(attachments)
    while waiting:
        container = waiting.pop()
        for key, value in enumerate(container) if isinstance(container, list) else list(container.items()):
            if isinstance(value, dict) and value.get("_placeholder") is True and "num" in value:
                number = value["num"]
                if type(number) is not int or not 0 <= number < len(left) or left[number] is None:
                    raise NotAPacketError("a placeholder points to no attachment")
                container[key], left[number] = left[number], None
                places += 1
            elif isinstance(value, (list, dict)):
                waiting.append(value)
    if places != len(left):
        raise NotAPacketError("an attachment has no placeholder")
    return result[0]
