"""Long-polling's payloads and bodies (Engine.IO protocol v4), read from clients without trust."""

import base64
import binascii
from collections.abc import Iterable
from typing import Any

from socketio_pg.core import green

SEPARATOR = "\x1e"
#: Packets in one body at most. Stock clients put everything into one POST that was emitted since the last.
MAX_PACKETS = 1000
#: Seconds in which the whole body of a POST must have come.
BODY_TIMEOUT = 10.0


class BodyError(Exception):
    """A request's body cannot be taken; ``status`` is what to answer."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


def body_length(environ: dict[str, Any], most: int) -> int:
    """How many bytes the body of a POST has, ``most`` at most. Raises :class:`BodyError`."""
    if "HTTP_TRANSFER_ENCODING" in environ or not environ.get("CONTENT_LENGTH"):
        # Stock clients say the length, and so do proxies that have the whole body.
        raise BodyError("411 LENGTH REQUIRED", "Content-Length is missing")
    text = environ["CONTENT_LENGTH"]
    if not (text.isascii() and text.isdigit()):
        raise BodyError("400 BAD REQUEST", "Content-Length is not a number")
    length = int(text) if len(text) < 19 else most + 1
    if length > most:
        raise BodyError("413 CONTENT TOO LARGE", f"the body has over {most} bytes")
    return length


def read_body(environ: dict[str, Any], most: int) -> bytes:
    """The body of a POST. Waits for it, :data:`BODY_TIMEOUT` at most. Raises :class:`BodyError`.

    After that the connection must be closed: nobody knows where the next request begins.
    """
    length = body_length(environ, most)
    try:
        with green.timeout(BODY_TIMEOUT):
            body: bytes = environ["wsgi.input"].read(length)
    except green.TimedOut:
        raise BodyError("408 REQUEST TIMEOUT", "the body did not arrive in time") from None
    except OSError:
        raise BodyError("400 BAD REQUEST", "the body is incomplete") from None
    if len(body) < length:
        raise BodyError("400 BAD REQUEST", "the body is incomplete")
    return body


def decode_payload(body: bytes) -> list[str | bytes]:
    """The packets of a body, text with its type in front, binary messages as bytes. Raises ValueError."""
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
    """``packets`` as they are put into the answer to a poll."""
    return SEPARATOR.join(
        packet if isinstance(packet, str) else "b" + base64.b64encode(packet).decode() for packet in packets
    ).encode()
