"""The headers of a request must leave no doubt about where its body ends, so that none can be smuggled past a proxy.

For the WSGI servers of the green-thread libraries, which ignore or repair headers that are invalid. gunicorn refuses
these itself.
"""

import re
from email.message import Message
from typing import Any

#: The maximum size of all headers of a request in bytes.
MAX_BYTES = 65_536
#: A header line (RFC 9112, section 5). Lines that continue the previous one are obsolete.
_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n")


class HeadError(ValueError):
    """The request must be refused, and its connection closed."""


class Lines:
    """The header lines of a request from the connection ``source``, for :func:`http.client.parse_headers`."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self._left = MAX_BYTES

    def readline(self, size: int) -> bytes:
        """Return the next line, at last an empty one. Raises :class:`HeadError` if it is not a header."""
        line: bytes = self._source.readline(min(size, self._left))
        self._left -= len(line)
        if line != b"\r\n" and not _LINE.fullmatch(line):
            raise HeadError("a header is invalid, or all together are too long")
        return line


def check(headers: Message, version: str) -> None:
    """Raise :class:`HeadError` if a request of this version of HTTP, such as "HTTP/1.1", has a doubtful end."""
    lengths, codings = headers.get_all("Content-Length", []), headers.get_all("Transfer-Encoding", [])
    if len(lengths) + len(codings) > 1:
        raise HeadError("the length of the body is ambiguous")
    if not all(length.isascii() and length.isdigit() for length in lengths):
        raise HeadError("Content-Length is not a number")
    if any(version != "HTTP/1.1" or coding.strip(" \t").lower() != "chunked" for coding in codings):
        raise HeadError("the only Transfer-Encoding is chunked, of HTTP/1.1")
