"""An application whose server gives connections away, to itself.

A request with ``move`` in its head moves its connection to another :class:`Front`, on a new descriptor. The application
sees ``moved`` as the server's name from then on: ``/where``.
"""

from socketio_pg.core import green

green.patch()

from typing import Any  # noqa: E402

from flask import request  # noqa: E402

from socketio_pg.app import create_app  # noqa: E402
from socketio_pg.engine.front import Connection, Front  # noqa: E402
from socketio_pg.protocol.extension import middleware_of  # noqa: E402

app = create_app()


@app.route("/where", methods=["GET", "POST"])
def where() -> dict[str, Any]:
    names = ("SERVER_NAME", "REMOTE_ADDR", "wsgi.url_scheme")
    return {name: request.environ[name] for name in names} | {"body": request.get_data(as_text=True)}


def serve_connections(worker: Any, *, hooked: bool) -> None:
    """In place of :meth:`SocketServer.serve_connections`."""
    other = Front(worker, middleware_of(app))

    def route(head: bytes, connection: Connection) -> bool:
        assert head.endswith(b"\r\n\r\n")
        if b"move" not in head:
            return False
        descriptor = connection.give_away().detach()
        green.run_soon(other.serve, descriptor, connection.received, connection.address, ("moved", 1))
        return True

    Front(worker, middleware_of(app), route).install()


app.extensions["socketio_pg"].serve_connections = serve_connections
