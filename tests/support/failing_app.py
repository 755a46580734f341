"""The server with a bug: a client whose handshake has the header X-Fail cannot open a WebSocket."""

from typing import Any

from socketio_pg.protocol.extension import middleware_of
from socketio_pg.server import app

middleware = middleware_of(app)
assert middleware is not None
_admits = middleware._admits


def admits(environ: dict[str, Any]) -> bool:
    if "HTTP_X_FAIL" in environ:
        raise RuntimeError("a bug")
    return _admits(environ)


middleware._admits = admits
