"""gunicorn's configuration for tests of slow clients: the kernel buffers kilobytes for a connection and not megabytes.

``-c python:tests.support.small_buffers``
"""

import socket
from typing import Any

from socketio_pg.gunicorn_config import *  # noqa: F403

OPTIONS = ("-c", f"python:{__name__}")


def when_ready(server: Any) -> None:
    for listener in server.LISTENERS:
        # Connections inherit it.
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
