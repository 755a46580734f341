"""A server as it was before requests could name several channels: it ignores `channels`, and misses `channel`."""

from socketio_pg.core import green

green.patch()

from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

from socketio_pg.websocket import SocketServer  # noqa: E402

server = SocketServer()
app = server.app


def older(handler: Callable[..., Any]) -> Callable[..., Any]:
    def handle(sid: str, request: dict[str, Any]) -> Any:
        return handler(sid, {name: value for name, value in request.items() if name != "channels"})

    return handle


_handlers = server.socketio.server.handlers["/"]
for _event in ("subscribe", "unsubscribe"):
    _handlers[_event] = older(_handlers[_event])
