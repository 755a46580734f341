"""The standard application; a client may ask for the process id of the worker that serves it."""

from socketio_pg.core import green

green.patch()

import os  # noqa: E402

from socketio_pg.app import create_app  # noqa: E402

app = create_app()


@app.extensions["socketio_pg"].socketio.on("pid")
def pid() -> int:
    return os.getpid()
