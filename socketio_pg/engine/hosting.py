"""Refuses programs that cannot run the server: all but gunicorn with workers with green threads, and our own.

Others accept connections, but do not run the green threads that serve them. Imports nothing but the standard library,
because it is used before that is patched: flask and click must not be imported earlier.
"""

import argparse
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from socketio_pg.core import green_library
from socketio_pg.workers import node
from socketio_pg.workers.loads import MAX_WORKERS

_CONFIG = "python:socketio_pg.gunicorn_config"
COMMAND = f"gunicorn -c {_CONFIG} --worker-class {green_library.LIBRARIES[0]} --workers 1"
_ADVICE = (
    f"start it with `socketio-pg serve` or `{COMMAND} socketio_pg.server:app`, and an application of your own with "
    f"`{COMMAND} MODULE:APP`; --worker-class may also be {' or '.join(green_library.LIBRARIES[1:])}"
)
_REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"

#: Programs that import an application to serve it, by the name of the command or of the module.
_OTHERS = ("uvicorn", "hypercorn", "daphne", "granian", "waitress", "waitress-serve", "uwsgi", "mod_wsgi-express")
#: gunicorn's modules of worker classes, and the names of these.
_WORKER_CLASSES = {"sync": "sync", "gthread": "gthread", "gtornado": "tornado", "gasgi": "asgi"}
#: Worker classes of gunicorn in the module of one of ours that serve with gevent's own server.
_OWN_SERVER_CLASSES = ("gevent_wsgi", "gevent_pywsgi")


def refusal_at_start() -> str | None:
    """Return why the program that imports the application cannot serve it; None if it may be able to."""
    if _is_flask_run():
        name: str | None = "flask run"
    elif os.environ.get("SERVER_SOFTWARE", "").startswith("gunicorn/") and "gunicorn.arbiter" in sys.modules:
        name = _wrong_worker_class(sys.modules)
    else:
        name = _other_program(sys.argv[0] if sys.argv else "")
    return green_library.problem() if name is None else f"this server does not run on {name}: {_ADVICE}"


def _is_flask_run() -> bool:
    if "click" not in sys.modules:
        return False
    context: Any = sys.modules["click"].get_current_context(silent=True)
    return context is not None and context.info_name == "run" and type(context.obj).__name__ == "ScriptInfo"


def _wrong_worker_class(modules: Collection[str]) -> str | None:
    # gunicorn imports the class that it uses, and no other.
    if green_library.of_worker_class() is not None:
        return None
    found = [name for module, name in _WORKER_CLASSES.items() if f"gunicorn.workers.{module}" in modules]
    return f"gunicorn's worker class {found[0]}" if found else "this worker class of gunicorn"


def _other_program(path: str) -> str | None:
    # `python -m` names the file of the module.
    name = Path(path).parent.name if Path(path).name == "__main__.py" else Path(path).name
    return name if name in _OTHERS else None


def missing_package(error: ModuleNotFoundError) -> str:
    """Return how to install what this Python lacks. Raises ``error`` if that is part of this package."""
    if error.name in green_library.LIBRARIES[1:]:
        return f"{green_library.variable()} is {error.name}, but {green_library.missing(str(error.name))}"
    if not _REQUIREMENTS.exists() or str(error.name).startswith("socketio_pg"):
        raise error
    return (
        f"socketio_pg needs the package {error.name}: run {sys.executable} -m pip install -r {_REQUIREMENTS} "
        "(or make setup, which makes an environment in .venv)"
    )


def refusal_of_several(workers: int, *, started_with_one: bool) -> str | None:
    """Return why gunicorn must not have this number of workers; ``started_with_one``: it had one from the start."""
    if workers <= 1:
        return None
    if started_with_one:
        return (
            f"this gunicorn was started with one worker, which does not share its clients: to have {workers}, restart "
            f"it with --workers {workers}"
        )
    if workers > MAX_WORKERS:
        return f"a gunicorn may have at most {MAX_WORKERS} workers, not {workers}"
    return node.refusal()


class Options(argparse.Namespace):
    """Options of gunicorn's command line; None for those that are not given."""

    worker_class: str | None
    workers: str | None
    http_protocols: str | None
    http2_cleartext: str | None


def options_in(arguments: Sequence[str]) -> Options:
    """Return the options in gunicorn's command-line ``arguments``."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for names in (("-k", "--worker-class"), ("-w", "--workers"), ("--http-protocols",), ("--http2-cleartext",)):
        parser.add_argument(*names, nargs="?")
    return parser.parse_known_args(list(arguments), Options())[0]


def refusal_of_worker_class(name: str, wanted: str | None, gunicorn: str) -> str | None:
    """Return why gunicorn, of that version, must not start workers of the class ``name``; GREEN is ``wanted``."""
    if name in _OWN_SERVER_CLASSES:
        return f"this server does not run on gunicorn's worker class {name}: {_ADVICE}"
    if name not in green_library.LIBRARIES:
        return None  # refused when the worker imports the application
    found = green_library.mismatch(name, wanted)
    if found is not None:
        return found
    newest = green_library.LAST_GUNICORN.get(name)
    if newest is not None and int(gunicorn.partition(".")[0]) > newest:
        return (
            f"gunicorn {gunicorn} has no worker class for {name}: start it with --worker-class "
            f"{green_library.RETIRING[name]}, or run {sys.executable} -m pip install 'gunicorn<{newest + 1}'"
        )
    return green_library.missing(name)


def refusal_of_http2(protocols: str | Collection[str] | None, cleartext: str | None) -> str | None:
    """Return why gunicorn must not run with its settings http_protocols and http2_cleartext."""
    names = protocols.split(",") if isinstance(protocols, str) else list(protocols or ())
    if any(name.strip().lower() not in ("h1", "http/1.1") for name in names):
        setting = f"http_protocols {','.join(names)}"
    elif cleartext not in (None, "off"):
        setting = f"http2_cleartext {cleartext}"
    else:
        return None
    return (
        f"this server does not run with gunicorn's {setting}: a WebSocket takes over the connection, which HTTP/2 "
        "shares between requests; leave the setting out, and let a proxy speak HTTP/2"
    )


def refusal_of_request(environ: Mapping[str, Any]) -> str | None:
    """Return why the WSGI server that passes this request cannot serve clients; None if it can."""
    if "gunicorn.socket" in environ:
        if not environ.get("wsgi.multiprocess") or node.current() is not None:
            return None
        return (
            f"this server runs on several workers only with its gunicorn configuration (gunicorn -c {_CONFIG} …): "
            f"clients of one worker would not reach the others; {_ADVICE}"
        )
    if not environ.keys().isdisjoint(green_library.OWN_SERVERS):
        return None
    return f"this server does not run on this WSGI server: {_ADVICE}"
