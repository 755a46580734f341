"""The head of an HTTP/1 request as bytes: where it ends, and the plain ones of WebSocket handshakes. Pure."""

import re

#: The maximum size of a request's headers in bytes. gunicorn limits each of them, and their number, and would buffer
#: 800 KB for each client that has not sent the last line.
MAX_HEAD_BYTES = 32_768
#: gunicorn's maximum for the request line, in bytes.
MAX_LINE_BYTES = 8_190

#: Limits of :func:`plain_handshake`: bytes of a head, bytes of its request line, and header lines.
PLAIN_HEAD, PLAIN_LINE, PLAIN_FIELDS = 8_000, 2_000, 40

_LINE = re.compile(rb"[A-Z]{3,20} (?:https?://[A-Za-z0-9._:-]+)?/[\x21-\x7e]* HTTP/1\.[01]\r\n")
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


_PLAIN = re.compile(
    r"GET (/[0-9A-Za-z._~/-]*)\?([0-9A-Za-z._~=&-]*) HTTP/1\.1\r\n((?:[0-9A-Za-z-]+:[\t\x20-\x7e]*\r\n)+)\r\n"
)
#: Headers that change what the request is, or where it ends.
_SPECIAL = ("HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "HTTP_EXPECT")
#: The name of a header → its name in the environ. Bounded, because clients choose the names.
_keys: dict[str, str] = {}
_MAX_KEYS = 500


def plain_handshake(data: bytes, path: str) -> dict[str, str] | None:
    """Return the environ of a request that opens a WebSocket at ``path``, which ends with a slash.

    None for any other request, and for one that has anything unusual: gunicorn parses that. For what is returned here,
    gunicorn's environ has the same values. The handshake itself may still be invalid.
    """
    found = _PLAIN.fullmatch(data.decode("latin-1")) if len(data) <= PLAIN_HEAD else None
    if found is None:
        return None
    given, query, headers = found.groups()
    if (given != path and f"{given}/" != path) or found.start(3) > PLAIN_LINE or not _opens_websocket(query):
        return None
    environ = {
        "REQUEST_METHOD": "GET",
        "RAW_URI": f"{given}?{query}",
        "PATH_INFO": given,
        "SCRIPT_NAME": "",
        "QUERY_STRING": query,
        "SERVER_PROTOCOL": "HTTP/1.1",
    }
    lines = headers.split("\r\n")
    lines.pop()
    if len(lines) > PLAIN_FIELDS:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        key = _keys.get(name) or _key(name)
        if key in environ or key in _SPECIAL:
            return None
        environ[key] = value.strip(" \t")
    return environ


def _opens_websocket(query: str) -> bool:
    parameters: dict[str, str] = {}
    for parameter in query.split("&"):
        name, equals, value = parameter.partition("=")
        if not equals or "=" in value or name in parameters or len(parameters) == 10:
            return False
        parameters[name] = value
    wanted = parameters.get("EIO") == "4" and parameters.get("transport") == "websocket"
    return wanted and "sid" not in parameters and "j" not in parameters


def _key(name: str) -> str:
    key = f"HTTP_{name.upper().replace('-', '_')}"
    if len(_keys) < _MAX_KEYS:
        _keys[name] = key
    return key
