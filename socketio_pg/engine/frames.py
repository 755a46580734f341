"""WebSocket frames (RFC 6455): encodes a server's frames and decodes those of clients. Pure, no I/O."""

import base64
import codecs
import hashlib
import struct

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
CONTINUATION = 0x0
NORMAL, GOING_AWAY, PROTOCOL_ERROR, INVALID_DATA, POLICY_VIOLATION, TOO_BIG = 1000, 1001, 1002, 1007, 1008, 1009

#: The maximum number of empty fragments in one message.
MAX_EMPTY_FRAGMENTS = 100

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class FrameError(Exception):
    """The peer violated the protocol; ``code`` is the close code to send (RFC 6455, section 7.4.1)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def accept_key(key: str) -> str:
    """Return the value of ``Sec-WebSocket-Accept`` (RFC 6455, section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()


def encode_frame(opcode: int, payload: bytes) -> bytes:
    """Encode one unfragmented, unmasked frame, as servers send them."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65536:
        return struct.pack("!BBH", 0x80 | opcode, 126, size) + payload
    return struct.pack("!BBQ", 0x80 | opcode, 127, size) + payload


def encode_text(text: str) -> bytes:
    """Encode a text frame."""
    return encode_frame(TEXT, text.encode())


def encode_close(code: int) -> bytes:
    """Encode a close frame without a reason text."""
    return encode_frame(CLOSE, struct.pack("!H", code))


def unmask(payload: bytes, mask: bytes) -> bytes:
    """Return ``payload`` XOR the repeated 4-byte ``mask``.

    As one large integer, because a loop over bytes takes a quarter of a second for 1 MB.
    """
    size = len(payload)
    if mask == b"\0\0\0\0" or not size:
        return payload
    repeated = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(repeated, "little")).to_bytes(size, "little")


class FrameReader:
    """Assembles a client's bytes into messages.

    ``max_size``: the maximum number of bytes in one message with all its fragments. It may be changed at any time.

    A frame that arrives in pieces is unmasked piece by piece, and no byte is copied again when later ones arrive. So a
    frame costs time in proportion to its size, even if it arrives a byte at a time.
    """

    __slots__ = ("_empty", "_final", "_left", "_mask", "_message", "_opcode", "_rest", "max_size")

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        #: The beginning of a frame whose header is incomplete, or of an incomplete control frame.
        self._rest = b""
        #: The incomplete message, if there is one, and its opcode.
        self._message: bytearray | None = None
        self._opcode = 0
        #: The number of bytes that are missing from the present frame.
        self._left = 0
        self._final = False
        self._mask = b""
        self._empty = 0

    @property
    def held(self) -> int:
        """The number of buffered bytes of incomplete frames and messages."""
        return len(self._rest) + len(self._message or b"")

    def feed(self, data: bytes) -> list[tuple[int, bytes | str]]:
        """Return the messages that ``data`` completes, in order, as (opcode, payload): text as str, others as bytes.

        Control frames are in between, in the order of their arrival. Raises :class:`FrameError`; the reader is unusable
        after that.
        """
        if self._rest:
            data, self._rest = self._rest + data, b""
        messages: list[tuple[int, bytes | str]] = []
        position, end = 0, len(data)
        if self._left:
            position = self._continue(data, 0, end, messages)
        while end - position >= 2:
            first, second = data[position], data[position + 1]
            if first & 0x70:
                raise FrameError(PROTOCOL_ERROR, "a reserved bit is set")
            if not second & 0x80:
                raise FrameError(PROTOCOL_ERROR, "a frame is not masked")
            opcode, final, size, start = first & 0x0F, first & 0x80, second & 0x7F, position + 2
            if opcode >= CLOSE and (size > 125 or not final):
                raise FrameError(PROTOCOL_ERROR, "a control frame is too long or fragmented")
            if size >= 126:
                width = 2 if size == 126 else 8
                if end < start + width:
                    break
                size = int.from_bytes(data[start : start + width], "big")
                start += width
                if size < (126 if width == 2 else 65536) or size >= 1 << 63:
                    raise FrameError(PROTOCOL_ERROR, "a length is not encoded in the minimal number of bytes")
            if opcode < CLOSE:
                self._check_data(opcode, size, bool(final))
            elif opcode not in (CLOSE, PING, PONG):
                raise FrameError(PROTOCOL_ERROR, "an unknown opcode")
            start += 4
            if end < start + size:
                if opcode >= CLOSE or end < start:
                    break
                self._begin(opcode, bool(final), size, data[start - 4 : start])
                position = self._continue(data, start, end, messages)
                break
            position = start + size
            payload = unmask(data[start:position], data[start - 4 : start])
            if opcode >= CLOSE:
                if opcode == CLOSE:
                    _check_close(payload)
                messages.append((opcode, payload))
            elif final and self._message is None:
                messages.append((opcode, _decoded(opcode, payload)))
            else:
                self._begin(opcode, bool(final), size, b"")
                assert self._message is not None
                self._message += payload
                self._left = 0
                self._end_frame(messages)
        if position < end:
            self._rest = data[position:]
        return messages

    def _check_data(self, opcode: int, size: int, final: bool) -> None:
        """Check a data frame's header, before its payload is read."""
        if opcode == CONTINUATION:
            if self._message is None:
                raise FrameError(PROTOCOL_ERROR, "a continuation frame without a message")
            size += len(self._message)
        elif opcode > BINARY:
            raise FrameError(PROTOCOL_ERROR, "an unknown opcode")
        elif self._message is not None:
            raise FrameError(PROTOCOL_ERROR, "a message begins within another")
        if size > self.max_size:
            raise FrameError(TOO_BIG, f"a message has more than {self.max_size} bytes")

    def _begin(self, opcode: int, final: bool, size: int, mask: bytes) -> None:
        if opcode != CONTINUATION:
            self._message, self._opcode, self._empty = bytearray(), opcode, 0
        elif not size and not final:
            # They need no memory, but the message might never end.
            self._empty += 1
            if self._empty > MAX_EMPTY_FRAGMENTS:
                raise FrameError(POLICY_VIOLATION, "too many empty fragments")
        self._final, self._left, self._mask = final, size, mask

    def _continue(self, data: bytes, start: int, end: int, messages: list[tuple[int, bytes | str]]) -> int:
        """Consume bytes of the present frame from ``data``. Return the position after them."""
        assert self._message is not None
        piece = data[start : min(end, start + self._left)]
        self._message += unmask(piece, self._mask)
        self._left -= len(piece)
        turn = len(piece) % 4
        self._mask = self._mask[turn:] + self._mask[:turn]
        if not self._left:
            self._end_frame(messages)
        return start + len(piece)

    def _end_frame(self, messages: list[tuple[int, bytes | str]]) -> None:
        if self._final:
            assert self._message is not None
            whole, self._message = bytes(self._message), None
            messages.append((self._opcode, _decoded(self._opcode, whole)))


def _decoded(opcode: int, payload: bytes) -> bytes | str:
    if opcode == BINARY:
        return payload
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise FrameError(INVALID_DATA, "a text message is not UTF-8") from None


def _check_close(payload: bytes) -> None:
    if not payload:
        return
    if len(payload) == 1:
        raise FrameError(PROTOCOL_ERROR, "a close code is incomplete")
    code = int.from_bytes(payload[:2], "big")
    if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise FrameError(PROTOCOL_ERROR, "a close code is not allowed")
    try:
        codecs.decode(payload[2:], "utf-8")
    except UnicodeDecodeError:
        raise FrameError(INVALID_DATA, "a close reason is not UTF-8") from None
