"""The server with a route that makes the worker that gets it drain, while it still accepts connections."""

from socketio_pg.server import app


@app.get("/drain")
def drain() -> str:
    app.extensions["socketio_pg"].start_draining()
    return "draining"
