"""The standard application with an additional route that needs a session."""

from socketio_pg.core import green

green.patch()

from flask import session  # noqa: E402

from socketio_pg.app import create_app  # noqa: E402

app = create_app()


@app.get("/remember")
def remember() -> str:
    session["user"] = "alice"
    return "done"
