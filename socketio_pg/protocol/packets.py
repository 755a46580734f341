"""Strict parser of the Socket.IO packets that clients send. Pure, no I/O.

Text that is not a packet raises :class:`NotAPacketError`, which ends the connection. A well-formed packet with a
senseless request is parsed, and `server` answers it.
"""

import gc
import re
from collections.abc import Callable
from typing import Any

import orjson
import socketio

from socketio_pg.core.errors import InvalidRequestError, SocketIOPGError
from socketio_pg.core.messages import WireJSON, parse_leniently, quick_json

CONNECT, DISCONNECT, EVENT, ACK, CONNECT_ERROR, BINARY_EVENT, BINARY_ACK = range(7)

#: The maximum number of attachments of a binary packet. Their total size has the limit of one packet.
MAX_ATTACHMENTS = 16
#: The maximum length of a namespace in characters: answers repeat it.
MAX_NAMESPACE = 255
#: The largest id of an acknowledgement: the largest safe integer of JavaScript.
MAX_ID = 2**53 - 1
#: The maximum number of lists and objects in a packet: a megabyte could hold 300,000, which take 50 ms.
MAX_CONTAINERS = 100_000
#: Text of up to this many characters that is not strict JSON is parsed leniently, so that its error has a precise code.
LENIENT_CHARACTERS = 65_536

_HEAD = re.compile(r"(?:([0-4])|([56])([0-9]{1,10})-)")
_ID = re.compile(r"[0-9]{0,16}")
#: A number of 19 digits or more, which may exceed 64 bits.
_LONG_NUMBER = re.compile(r"(?:\A|[\[,:])\s*-?[0-9]{19}")


class NotAPacketError(InvalidRequestError):
    """The client sent something that is not a Socket.IO packet: its connection ends."""


class UnreadableError(InvalidRequestError):
    """The packet's JSON is invalid and too large for the lenient parser, or has too many lists and objects."""


def not_a_packet(data: object, problem: str) -> NotAPacketError:
    """Return the error for ``data``: ``problem``, unless it is the packet of another parser, which the error names."""
    parser = None
    if isinstance(data, str) and data.startswith("{") and '"type"' in data[:1000] and '"nsp"' in data:
        parser = "JSON"
    # A map with up to 15 keys; each text begins with its length.
    elif isinstance(data, bytes) and data[:1] in _SMALL_MAPS and b"\xa4type" in data[:1000] and b"\xa3nsp" in data:
        parser = "msgpack"
    if parser is not None:
        problem = f"it uses a {parser} parser, and this server has Socket.IO's default parser only"
    return NotAPacketError(problem)


_SMALL_MAPS = [bytes((0x80 | size,)) for size in range(16)]


def quick_packet(kind: int, namespace: str, data: object, id: int | None = None) -> str | None:
    """Return an encoded packet with JSON data; None if python-socketio must look for binary data, or refuse it."""
    text = quick_json(data)
    if text is None:
        return None
    return f"{kind}{'' if namespace == '/' else f'{namespace},'}{'' if id is None else id}{text}"


class Packet(socketio.packet.Packet):  # type: ignore[misc]
    """A Socket.IO packet that carries strict JSON; a subclass, because ``json`` is a class attribute."""

    json = WireJSON

    #: The size of the packet: characters of its text and bytes of its attachments.
    size = 0
    #: Called before the data of an event or acknowledgement is parsed, which can be expensive. An exception leaves it
    #: unparsed.
    before_data: Callable[["Packet"], None] | None = None
    #: The reason why the data was not parsed; None when it was.
    unread: SocketIOPGError | None = None

    @property
    def is_binary(self) -> bool:
        """True when attachments follow."""
        return self.packet_type in (BINARY_EVENT, BINARY_ACK)

    def decode(self, encoded_packet: str) -> int:
        """Parse ``encoded_packet`` and return the number of attachments. Raises :class:`NotAPacketError`."""
        head = _HEAD.match(encoded_packet) if isinstance(encoded_packet, str) else None
        if head is None:
            raise not_a_packet(encoded_packet, "this is not a Socket.IO packet")
        self.size = len(encoded_packet)
        self.packet_type = int(head[1] or head[2])
        attachments = int(head[3] or 0)
        if self.is_binary and not 1 <= attachments <= MAX_ATTACHMENTS:
            # Without attachments the next packet would be taken for one.
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
            if self.before_data is not None and self.packet_type in (EVENT, BINARY_EVENT, ACK, BINARY_ACK):
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
        """Add an attachment and return whether it was the last. Raises :class:`NotAPacketError`."""
        if not isinstance(attachment, bytes):
            raise NotAPacketError("an attachment was announced, but this is not one")
        self.attachments.append(attachment)
        self.size += len(attachment)
        if len(self.attachments) < self.attachment_count:
            return False
        if self.unread is None:
            self.data = _with_attachments(self.data, self.attachments)
        return True


def read_json(text: str) -> Any:
    """Parse strict JSON of any size, and up to 64 KB of JSON as lenient as Python's parser (NaN, lone surrogates).

    Handlers find lenient values and answer them with their code. Raises :class:`UnreadableError` for longer text that
    is not strict and for too many lists and objects, :class:`NotAPacketError` for text that is not JSON.
    """
    if text.count("[") + text.count("{") > MAX_CONTAINERS:
        raise UnreadableError(f"this has over {MAX_CONTAINERS} lists and objects")
    # The garbage collector would visit thousands of new lists again and again.
    collecting = gc.isenabled()
    gc.disable()
    try:
        value = orjson.loads(text)
        # orjson turns integers over 64 bits into floats. They are rare, and worth the slower parser.
        return parse_leniently(text) if _LONG_NUMBER.search(text) else value
    except (ValueError, RecursionError):
        if len(text) > LENIENT_CHARACTERS:
            raise UnreadableError("this is not strict JSON") from None
        try:
            return parse_leniently(text)
        except (ValueError, RecursionError):
            raise NotAPacketError("this is not JSON, or nested too deeply") from None
    finally:
        if collecting:
            gc.enable()


def _with_attachments(data: Any, attachments: list[bytes]) -> Any:
    """Return ``data`` with each attachment in the place of its placeholder. Raises :class:`NotAPacketError`.

    Each attachment has exactly one placeholder: clients number them in the order in which they find them.
    """
    places = 0
    result = [data]
    # Not recursive, because the client chooses the depth.
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
