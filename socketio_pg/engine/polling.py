"""Request bodies and payloads of long-polling (Engine.IO protocol v4), from untrusted clients."""

import base64
import binascii
from collections.abc import Iterable
from typing import Any

from socketio_pg.core import green
from socketio_pg.engine import handover
from socketio_pg.engine.chunked import ChunkError, TooLargeError, read_chunked

SEPARATOR = "\x1e"
#: The maximum number of packets in one body. Stock clients send all packets since the last POST in one body.
MAX_PACKETS = 1000
#: Seconds in which the whole body of a POST must arrive.
BODY_TIMEOUT = 10.0


class BodyError(Exception):
    """A request's body is not acceptable; ``status`` is the HTTP status of the response."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


def body_length(environ: dict[str, Any], max_bytes: int) -> int | None:
    """Return the length of a POST's body, None for a chunked one. Raises :class:`BodyError`.

    Also raises it for more than ``max_bytes``.
    """
    text, coding = environ.get("CONTENT_LENGTH"), environ.get("HTTP_TRANSFER_ENCODING")
    if coding is not None:
        if text:
            # A proxy in front may have used the other one to find the end of the body: request smuggling.
            raise BodyError("400 BAD REQUEST", "Content-Length and Transfer-Encoding exclude each other")
        if coding.strip(" \t").lower() != "chunked":
            raise BodyError("411 LENGTH REQUIRED", "the only Transfer-Encoding is chunked")
        return None
    if not text:
        raise BodyError("411 LENGTH REQUIRED", "Content-Length is missing")
    if not (text.isascii() and text.isdigit()):
        raise BodyError("400 BAD REQUEST", "Content-Length is not a number")
    length = int(text) if len(text) < 19 else max_bytes + 1
    if length > max_bytes:
        raise _too_large(max_bytes)
    return length


def _too_large(max_bytes: int) -> BodyError:
    return BodyError("413 CONTENT TOO LARGE", f"the body has more than {max_bytes} bytes")


def read_body(environ: dict[str, Any], max_bytes: int) -> bytes:
    """Return the body of a POST. Waits for it, at most :data:`BODY_TIMEOUT` seconds. Raises :class:`BodyError`.

    After an error the connection must be closed, because the start of the next request is unknown.
    """
    length = body_length(environ, max_bytes)
    try:
        with green.timeout(BODY_TIMEOUT):
            if length is None:
                with handover.chunked_source(environ) as source:
                    return read_chunked(source, max_bytes)
            body: bytes = environ["wsgi.input"].read(length)
    except green.TimedOut:
        raise BodyError("408 REQUEST TIMEOUT", "the body did not arrive in time") from None
    except OSError:
        raise BodyError("400 BAD REQUEST", "the body is incomplete") from None
    except ChunkError as error:
        raise BodyError("400 BAD REQUEST", str(error)) from None
    except TooLargeError:
        raise _too_large(max_bytes) from None
    if len(body) < length:
        raise BodyError("400 BAD REQUEST", "the body is incomplete")
    return body


def decode_payload(body: bytes) -> list[str | bytes]:
    """Decode a body's packets: text packets with their type digit, binary messages as bytes. Raises ValueError."""
    packets = body.decode().split(SEPARATOR, MAX_PACKETS)
    if len(packets) > MAX_PACKETS:
        raise ValueError("too many packets")
    return [_decode_packet(packet) for packet in packets]


def _decode_packet(packet: str) -> str | bytes:
    if packet[:1] != "b":
        if not packet:
            raise ValueError("an empty packet")
        return packet
    try:
        return base64.b64decode(packet[1:].encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise ValueError("not base64") from error


def encode_payload(packets: Iterable[str | bytes]) -> bytes:
    """Encode ``packets`` for the response to a poll."""
    return SEPARATOR.join(
        packet if isinstance(packet, str) else "b" + base64.b64encode(packet).decode() for packet in packets
    ).encode()
