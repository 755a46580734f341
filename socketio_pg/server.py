"""The server for gunicorn (``socketio_pg.server:app``) and for development (``python socketio_pg/server.py``)."""

# ruff: noqa: E402 - the order of these imports matters
import contextlib
import signal
import sys
from pathlib import Path

#: Ctrl-C, a service manager, and a terminal that is closed.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

if __name__ == "__main__":
    # Python puts this folder first on the path, where websocket.py would hide the package `websocket`.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    for ending in ENDING:
        signal.signal(ending, lambda signum, frame: sys.exit(128 + signum))

from socketio_pg.core import config, green_library, loading
from socketio_pg.core.errors import ConfigurationError
from socketio_pg.engine import hosting

#: gunicorn stops when a worker exits with this status (arbiter.APP_LOAD_ERROR); otherwise it starts another worker.
EXIT_CONFIGURATION = 4

if __name__ == "__main__":
    with contextlib.suppress(ConfigurationError):  # reported below
        green_library.want(loading.load().green)
_refusal = hosting.refusal_at_start()
if _refusal is not None:
    print(f"socketio_pg: {_refusal}.", file=sys.stderr, flush=True)
    raise SystemExit(EXIT_CONFIGURATION)

try:
    from socketio_pg.core import green
except ModuleNotFoundError as error:
    print(f"socketio_pg: {hosting.missing_package(error)}.", file=sys.stderr, flush=True)
    raise SystemExit(EXIT_CONFIGURATION) from None

# Comes before all other imports: modules imported earlier would keep the blocking functions.
green.patch()

import atexit
import os
import shlex
from collections.abc import Callable, Sequence

from flask import Flask

from socketio_pg.app import create_app
from socketio_pg.core.addresses import authority
from socketio_pg.postgres.embedded import EmbeddedPostgres
from socketio_pg.websocket import SocketServer

#: Values of HOST that mean all addresses of the machine.
ANY_ADDRESS = ("0.0.0.0", "::")


def _create(received: Sequence[int] = ()) -> Flask:
    """Make the application. ``received`` are signals that ended its start: its error is their effect, and not told."""
    try:
        return create_app()
    except ConfigurationError as error:
        if not received:
            print(f"socketio_pg: {error}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_CONFIGURATION) from None


def _create_for_development() -> Flask:
    """Make the application for :func:`main`: finds a port that is in use first, and leaves no database behind.

    Signals end the process once the embedded PostgreSQL has started: when its start is interrupted halfway, its files
    are incomplete, and its processes go on.
    """
    received: list[int] = []
    for ending in ENDING:
        signal.signal(ending, lambda signum, frame: received.append(signum))
    try:
        settings = loading.load()
        _check_address(settings)
    except ConfigurationError:
        settings = None  # reported below
    if settings is not None and settings.database_url is None and settings.debug:
        folder = Path(settings.embedded_data_dir).expanduser()
        first = "" if (folder / "PG_VERSION").exists() else ", which is new: some seconds"
        print(f"starting the embedded PostgreSQL in {folder}{first} …", flush=True)
    try:
        app = _create(received)
    except SystemExit:
        if received:
            raise SystemExit(128 + received[0]) from None
        raise
    finally:
        # Runs before the function of the embedded PostgreSQL, which stops it with a program that signals reach, too.
        atexit.register(_ignore_signals)
    if received:
        raise SystemExit(128 + received[0])
    return app


def _ignore_signals() -> None:
    for ending in ENDING:
        signal.signal(ending, signal.SIG_IGN)


def _check_address(settings: config.Settings) -> None:
    """Exit if the address is in use: otherwise that would show only after the database has started."""
    try:
        green.listen(settings.host, settings.port).close()
    except OSError as error:
        _cannot_listen(settings.host, settings.port, error)


def _cannot_listen(host: str, port: int, error: OSError) -> None:
    remedy = f"set PORT, for example PORT={port + 1}"
    print(f"socketio_pg: cannot listen on port {port} of {host}: {error.strerror}; {remedy}.", file=sys.stderr)
    raise SystemExit(1) from None


def main() -> None:
    """Run the development server until Ctrl-C."""
    server: SocketServer = app.extensions["socketio_pg"]
    stopping: list[bool] = []

    def stop() -> None:
        stopping.append(True)
        if len(stopping) == 1:
            server.shutdown()

    for ending in ENDING:
        signal.signal(ending, lambda signum, frame: green.spawn(stop))
    if os.isatty(0):
        green.spawn(_watch_terminal, stop)
    try:
        server.run(on_listening=lambda: print(_welcome(server), flush=True))
    except ConfigurationError as error:
        print(f"socketio_pg: {error}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_CONFIGURATION) from None
    except OSError as error:
        _cannot_listen(server.settings.host, server.port, error)


def _watch_terminal(closed: Callable[[], None]) -> None:
    """Call ``closed`` once the terminal is closed.

    The kernel sends SIGHUP to the leader of the session alone. If that is ``make``, it waits for this process.
    """
    while os.isatty(0):
        green.sleep(1.0)
    closed()


def _welcome(server: SocketServer) -> str:
    """Return what to try: addresses of pages, and commands that can be pasted into another terminal."""
    host = server.settings.host
    # Browsers on some systems do not open the address that means all addresses.
    url = f"http://{authority('localhost' if host in ANY_ADDRESS else host, server.port)}"
    lines = [f"socketio_pg listens on http://{authority(host, server.port)}"]
    if server.settings.test_page:
        lines.append(f"  playground  {url}/socket-test")
        if server.settings.debug:
            lines.append(f"  demos       {url}/demo/")
    if server.settings.debug:
        lines.append(f"  inspector   {url}/inspector/")
    command = _command()
    lines.append(f"  subscribe   {command} listen foo --url {url}")
    lines.append(f"  publish     {command} publish foo 42 --url {url}")
    embedded: EmbeddedPostgres | None = app.extensions.get("socketio_pg_embedded")
    if embedded is not None:
        lines.append(f"  database    export DATABASE_URL={shlex.quote(embedded.url())}")
        lines.append(f"  psql        {embedded.psql_command}")
    lines.append('  in SQL      NOTIFY foo, \'{"hello": "world"}\';')
    if server.settings.auto_init:
        lines.append("              SELECT socketio_pg.publish('foo', '{\"hello\": \"log\"}');")
    if embedded is not None:
        lines.append(f"Ctrl-C stops the server and its database, whose data stays in {_short(embedded.data_dir)}.")
    return "\n".join(lines)


def _command() -> str:
    """Return the command that runs this package's command line from the working folder."""
    programs = Path(sys.executable).parent
    if (programs / "socketio-pg").exists():
        return shlex.quote(_short(programs / "socketio-pg"))
    return f"{shlex.quote(_short(Path(sys.executable)))} -m socketio_pg"


def _short(path: Path) -> str:
    """Return a path below the working folder without that folder."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


app = _create_for_development() if __name__ == "__main__" else _create()

if __name__ == "__main__":
    main()
