"""WebSocket frames (RFC 6455): written for a server, read from clients. Pure, no I/O."""

import base64
import codecs
import hashlib
import struct

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
CONTINUATION = 0x0
NORMAL, GOING_AWAY, PROTOCOL_ERROR, INVALID_DATA, POLICY_VIOLATION, TOO_BIG = 1000, 1001, 1002, 1007, 1008, 1009

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class FrameError(Exception):
    """The peer broke the protocol; ``code`` is the close code to tell it with (RFC 6455, section 7.4.1)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def accept_key(key: str) -> str:
    """The value of ``Sec-WebSocket-Accept`` (RFC 6455, section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()


def encode_frame(opcode: int, payload: bytes) -> bytes:
    """One unfragmented, unmasked frame, as servers send them."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65536:
        return struct.pack("!BBH", 0x80 | opcode, 126, size) + payload
    return struct.pack("!BBQ", 0x80 | opcode, 127, size) + payload


def encode_text(text: str) -> bytes:
    """A text frame."""
    return encode_frame(TEXT, text.encode())


def encode_close(code: int) -> bytes:
    """A close frame without reason text."""
    return encode_frame(CLOSE, struct.pack("!H", code))


def unmask(payload: bytes, mask: bytes) -> bytes:
    """``payload`` XOR the repeated 4-byte ``mask``. As one big integer: by bytes 1 MB takes a quarter second."""
    size = len(payload)
    if mask == b"\0\0\0\0" or not size:
        return payload
    repeated = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(repeated, "little")).to_bytes(size, "little")


class FrameReader:
    """Puts the bytes that a client sends together to messages.

    ``max_size``: bytes of one message, all its fragments together.
    """

    __slots__ = ("_buffer", "_fragments", "_fragments_opcode", "_max_size")

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._buffer = b""
        self._fragments: bytearray | None = None
        self._fragments_opcode = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes | str]]:
        """The messages that ``data`` completes, in order, as (opcode, payload): text as str, all else as bytes.

        Control frames come in between as they arrive. Raises :class:`FrameError`; nothing more can be read then.
        """
        buffer = self._buffer + data if self._buffer else data
        messages: list[tuple[int, bytes | str]] = []
        position, end = 0, len(buffer)
        while end - position >= 2:
            first, second = buffer[position], buffer[position + 1]
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
                size = int.from_bytes(buffer[start : start + width], "big")
                start += width
            if size + (0 if opcode >= CLOSE or self._fragments is None else len(self._fragments)) > self._max_size:
                raise FrameError(TOO_BIG, f"a message has over {self._max_size} bytes")
            if end < start + 4 + size:
                break
            position = start + 4 + size
            self._take(opcode, bool(final), unmask(buffer[start + 4 : position], buffer[start : start + 4]), messages)
        self._buffer = buffer[position:] if position < end else b""
        return messages

    def _take(self, opcode: int, final: bool, payload: bytes, messages: list[tuple[int, bytes | str]]) -> None:
        if opcode in (TEXT, BINARY):
            if self._fragments is not None:
                raise FrameError(PROTOCOL_ERROR, "a message begins within another")
            if final:
                messages.append((opcode, _decoded(opcode, payload)))
            else:
                self._fragments, self._fragments_opcode = bytearray(payload), opcode
        elif opcode == CONTINUATION:
            if self._fragments is None:
                raise FrameError(PROTOCOL_ERROR, "a continuation of nothing")
            self._fragments += payload
            if final:
                whole, self._fragments = bytes(self._fragments), None
                messages.append((self._fragments_opcode, _decoded(self._fragments_opcode, whole)))
        elif opcode in (CLOSE, PING, PONG):
            if opcode == CLOSE:
                _check_close(payload)
            messages.append((opcode, payload))
        else:
            raise FrameError(PROTOCOL_ERROR, "an unknown opcode")


def _decoded(opcode: int, payload: bytes) -> bytes | str:
    if opcode == BINARY:
        return payload
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise FrameError(INVALID_DATA, "a text is not UTF-8") from None


def _check_close(payload: bytes) -> None:
    if not payload:
        return
    if len(payload) == 1:
        raise FrameError(PROTOCOL_ERROR, "a close code is cut off")
    code = int.from_bytes(payload[:2], "big")
    if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise FrameError(PROTOCOL_ERROR, "a close code is not allowed")
    try:
        codecs.decode(payload[2:], "utf-8")
    except UnicodeDecodeError:
        raise FrameError(INVALID_DATA, "a close reason is not UTF-8") from None
