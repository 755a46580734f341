"""The head of an HTTP/1 request as bytes: where it ends, and when gunicorn can answer without the rest of it. Pure."""

import re

#: The maximum size of a request's headers in bytes. gunicorn limits each of them, and their number, and would buffer
#: 800 KB for each client that has not sent the last line.
MAX_HEAD_BYTES = 32_768
#: gunicorn's maximum for the request line, in bytes.
MAX_LINE_BYTES = 8_190

_LINE = re.compile(rb"[A-Z]{3,20} /[\x21-\x7e]* HTTP/1\.[01]\r\n")
_PROXY_V1, _PROXY_V2 = b"PROXY ", b"\r\n\r\n\0\r\nQUIT\n"
#: The maximum size of PROXY protocol's first version, with its line break.
_MAX_PROXY_V1 = 107


def proxy_length(data: bytes) -> int | None:
    """Return the size of the PROXY protocol's header at the start of ``data``; None if more bytes must tell.

    0 for no header, and for an invalid one, to which gunicorn has an answer.
    """
    if data.startswith(_PROXY_V2):
        if len(data) < 16:
            return None
        size = 16 + int.from_bytes(data[14:16], "big")
        return size if len(data) >= size else None
    if data.startswith(_PROXY_V1):
        end = data.find(b"\r\n", 0, _MAX_PROXY_V1)
        return end + 2 if end >= 0 else None if len(data) < _MAX_PROXY_V1 else 0
    return None if _PROXY_V2.startswith(data) or _PROXY_V1.startswith(data) else 0


def end_of_head(data: bytes, start: int = 0) -> int | None:
    """Return where the head that begins at ``start`` ends; None while it is incomplete.

    -1 when gunicorn must look at it now: it refuses what is wrong in a request line, or too long, without the rest.
    """
    end = data.find(b"\r\n\r\n", start)
    if end >= 0:
        return end + 4
    line = data.find(b"\r\n", start)
    if line < 0:
        return None if len(data) - start <= MAX_LINE_BYTES and data[start : start + 1].isalpha() else -1
    if len(data) - start > MAX_HEAD_BYTES + MAX_LINE_BYTES or _LINE.match(data, start) is None:
        return -1
    return None
