"""The server for gunicorn (``socketio_pg.server:app``) and for development (``python socketio_pg/server.py``)."""

# ruff: noqa: E402 - the order of these imports matters
import sys
import warnings
from pathlib import Path

if __name__ == "__main__":
    # Python puts this folder first on the path, where websocket.py would hide the package `websocket`.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # eventlet is deprecated, see docs/deploy.md on pinned libraries
    import eventlet

# Comes before all other imports: modules imported earlier would keep the blocking functions.
eventlet.monkey_patch()

import signal

from flask import Flask

from socketio_pg.app import create_app
from socketio_pg.core import green
from socketio_pg.core.config import authority
from socketio_pg.core.errors import ConfigurationError
from socketio_pg.postgres.embedded import EmbeddedPostgres
from socketio_pg.websocket import SocketServer

#: gunicorn stops when a worker exits with this status (arbiter.APP_LOAD_ERROR); otherwise it starts another worker.
EXIT_CONFIGURATION = 4
#: Values of HOST that mean all addresses of the machine.
ANY_ADDRESS = ("0.0.0.0", "::")


def _create() -> Flask:
    try:
        return create_app()
    except ConfigurationError as error:
        print(f"socketio_pg: {error}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_CONFIGURATION) from None


def main() -> None:
    """Run the development server until Ctrl-C."""
    server: SocketServer = app.extensions["socketio_pg"]

    def stop(signum: int, frame: object) -> None:
        green.spawn(server.shutdown)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        server.run(on_listening=lambda: print(_welcome(server), flush=True))
    except ConfigurationError as error:
        print(f"socketio_pg: {error}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_CONFIGURATION) from None
    except OSError as error:
        print(f"socketio_pg: cannot listen on port {server.port}: {error.strerror}; set PORT.", file=sys.stderr)
        raise SystemExit(1) from None


def _welcome(server: SocketServer) -> str:
    host = server.settings.host
    lines = [f"socketio_pg listens on http://{authority(host, server.port)}"]
    # Browsers on some systems do not open the address that means all addresses.
    pages = f"http://{authority('localhost' if host in ANY_ADDRESS else host, server.port)}"
    if server.settings.test_page:
        lines.append(f"  demo page   {pages}/static/test.html")
        if server.settings.debug:
            lines.append(f"  more demos  {pages}/demo/")
    embedded: EmbeddedPostgres | None = app.extensions.get("socketio_pg_embedded")
    if embedded is not None:
        lines.append(f"  database    {embedded.url()}  (embedded, in {embedded.data_dir})")
        lines.append(f"  psql        {embedded.psql_command}")
    lines.append('  try         NOTIFY foo, \'{"hello": "world"}\';')
    if server.settings.auto_init:
        lines.append("  or          SELECT socketio_pg.publish('foo', '{\"hello\": \"log\"}');")
    return "\n".join(lines)


app = _create()

if __name__ == "__main__":
    main()
