"""An application whose route waits in PostgreSQL, through SQLAlchemy on psycopg 3.

``PSYCOPG_FIRST``: psycopg is imported before this package, even before the standard library is patched.
"""

import os

if os.environ.get("PSYCOPG_FIRST"):
    import psycopg  # noqa: F401

from socketio_pg.core import green

green.patch()

import sqlalchemy as sa  # noqa: E402
from flask import Flask  # noqa: E402

from socketio_pg.websocket import SocketServer  # noqa: E402

app = Flask(__name__)
url = app.config["SQLALCHEMY_DATABASE_URI"] = sa.make_url(os.environ["APP_DATABASE"])
engine = sa.create_engine(url)
server = SocketServer(app)


@app.get("/wait/<int:lock>")
def wait(lock: int) -> str:
    """Answer when the advisory lock is free."""
    with engine.begin() as connection:
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})
    return str(engine.dialect.driver)
