"""The environ of a handshake: its size, and the part that a connection keeps."""

import io
import sys
from typing import Any

Environ = dict[str, Any]

#: The key at which admission control notes a handshake, which counts for its address. The connection keeps it.
HANDSHAKE = "socketio_pg.handshake"
#: Strings that many requests have in common, stored once. Bounded, because clients choose them.
_shared: dict[str, str] = {}
_MAX_SHARED, _MAX_SHARED_LENGTH = 1000, 500
#: The maximum size of a handshake's headers in characters, because a connection keeps them.
MAX_HEADERS = 32_768
#: Values of these differ by client. The first two must not be kept longer than the client.
_NOT_SHARED = frozenset(("HTTP_AUTHORIZATION", "HTTP_COOKIE", "HTTP_SEC_WEBSOCKET_KEY", "REMOTE_PORT"))
#: What a connection keeps beside strings.
_KEPT = frozenset(("wsgi.version", "wsgi.multithread", "wsgi.multiprocess", "wsgi.run_once", "flask.app", HANDSHAKE))


def headers_size(environ: Environ) -> int:
    """Return the number of characters in a request's headers and path."""
    return sum(len(name) + len(value) for name, value in environ.items() if isinstance(value, str))


def slim_environ(environ: Environ) -> Environ:
    """Return the part of a WSGI environ that a connection keeps: enough for a request context, without streams."""
    kept: Environ = {}
    shared = _shared.get
    for name, value in environ.items():
        if isinstance(value, str):
            key = shared(name) or _share(name)
            kept[key] = value if name in _NOT_SHARED else shared(value) or _share(value)
        elif name in _KEPT:
            kept[name] = value
    kept.pop("HTTP_SEC_WEBSOCKET_KEY", None)
    kept["wsgi.input"] = _EMPTY
    kept["wsgi.errors"] = sys.stderr
    return kept


def _share(text: str) -> str:
    """Return the stored string that equals ``text``, or ``text`` itself."""
    if len(_shared) < _MAX_SHARED and len(text) <= _MAX_SHARED_LENGTH:
        return _shared.setdefault(text, text)
    return _shared.get(text, text)


_EMPTY = io.BytesIO()
