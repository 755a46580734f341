"""Request bodies with `Transfer-Encoding: chunked` (RFC 9112, section 7.1), strictly and within bounds.

The WSGI servers decode chunks too, but hold lines and trailers of any size in memory.
"""

import re
from typing import Protocol

from socketio_pg.core import green

#: The maximum number of chunks in one body.
MAX_CHUNKS = 10_000
#: The maximum number of bytes in a line with the size of a chunk, and in all trailers together.
MAX_LINE, MAX_TRAILERS = 1_000, 8_000

# An extension may contain anything but a line break. Neither signs, "0x" nor spaces before the number.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[^\r\n]*)?\r\n")


class ChunkError(ValueError):
    """The body is not correctly chunked, ends early, or exceeds a limit."""


class TooLargeError(Exception):
    """The data of the chunks exceeds the limit."""


class Source(Protocol):
    """The bytes of a connection after the head of a request."""

    def read(self, size: int) -> bytes:
        """Return ``size`` bytes, or fewer when the connection ends."""

    def readline(self, limit: int) -> bytes:
        """Return the bytes up to and including the next line feed, at most ``limit``."""


def read_chunked(source: Source, max_bytes: int) -> bytes:
    """Return the data of all chunks, without extensions and trailers, which are ignored.

    Nothing after the body is read. Raises :class:`ChunkError`, and :class:`TooLargeError` for more than ``max_bytes``.
    """
    body = bytearray()
    for number in range(MAX_CHUNKS + 1):
        if number % 100 == 99:
            green.sleep()  # many small chunks may have arrived together
        found = _SIZE.fullmatch(source.readline(MAX_LINE))
        if found is None:
            raise ChunkError("the size of a chunk is invalid")
        size = int(found[1], 16)
        if not size:
            _skip_trailers(source)
            return bytes(body)
        if len(body) + size > max_bytes:
            raise TooLargeError
        data = source.read(size)
        body += data
        if len(data) < size or source.read(2) != b"\r\n":
            raise ChunkError("a chunk does not have its size")
    raise ChunkError(f"the body has more than {MAX_CHUNKS} chunks")


def _skip_trailers(source: Source) -> None:
    left = MAX_TRAILERS
    while (line := source.readline(left)) != b"\r\n":
        left -= len(line)
        if left <= 0 or not line.endswith(b"\r\n"):
            raise ChunkError("the trailers are invalid or too long")
