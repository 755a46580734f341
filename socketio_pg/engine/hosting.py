"""Refuses programs that cannot run the server: all but gunicorn with one eventlet worker, and eventlet's own server.

Others accept connections, but do not run the green threads that serve them. Imports nothing but the standard library,
because it is used before eventlet patches that: flask and click must not be imported earlier.
"""

import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

COMMAND = "gunicorn -c python:socketio_pg.gunicorn_config --worker-class eventlet --workers 1"
_ADVICE = (
    f"start it with `socketio-pg serve` or `{COMMAND} socketio_pg.server:app`, and an application of your own with "
    f"`{COMMAND} MODULE:APP`"
)
_REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"

#: Programs that import an application to serve it, by the name of the command or of the module.
_OTHERS = ("uvicorn", "hypercorn", "daphne", "granian", "waitress", "waitress-serve", "uwsgi", "mod_wsgi-express")
#: gunicorn's modules of worker classes, and the names of these.
_WORKER_CLASSES = {"sync": "sync", "gthread": "gthread", "ggevent": "gevent", "gtornado": "tornado", "gasgi": "asgi"}


def refusal_at_start() -> str | None:
    """Return why the program that imports the application cannot serve it; None if it may be able to."""
    if _is_flask_run():
        name: str | None = "flask run"
    elif os.environ.get("SERVER_SOFTWARE", "").startswith("gunicorn/") and "gunicorn.arbiter" in sys.modules:
        name = _wrong_worker_class(sys.modules)
    else:
        name = _other_program(sys.argv[0] if sys.argv else "")
    return None if name is None else f"this server does not run on {name}: {_ADVICE}"


def _is_flask_run() -> bool:
    if "click" not in sys.modules:
        return False
    context: Any = sys.modules["click"].get_current_context(silent=True)
    return context is not None and context.info_name == "run" and type(context.obj).__name__ == "ScriptInfo"


def _wrong_worker_class(modules: Collection[str]) -> str | None:
    # gunicorn imports the class that it uses, and no other.
    if "gunicorn.workers.geventlet" in modules:
        return None
    found = [name for module, name in _WORKER_CLASSES.items() if f"gunicorn.workers.{module}" in modules]
    return f"gunicorn's worker class {found[0]}" if found else "this worker class of gunicorn"


def _other_program(path: str) -> str | None:
    # `python -m` names the file of the module.
    name = Path(path).parent.name if Path(path).name == "__main__.py" else Path(path).name
    return name if name in _OTHERS else None


def missing_package(error: ModuleNotFoundError) -> str:
    """Return how to install what this Python lacks. Raises ``error`` if that is part of this package."""
    if not _REQUIREMENTS.exists() or str(error.name).startswith("socketio_pg"):
        raise error
    return (
        f"socketio_pg needs the package {error.name}: run {sys.executable} -m pip install -r {_REQUIREMENTS} "
        "(or make setup, which makes an environment in .venv)"
    )


def refusal_of_several(workers: int) -> str | None:
    """Return why gunicorn must not start this number of workers."""
    return None if workers <= 1 else _several(str(workers))


def _several(workers: str) -> str:
    return f"this server runs on one worker, not {workers}: clients of one worker would not reach the others; {_ADVICE}"


def refusal_of_request(environ: Mapping[str, Any]) -> str | None:
    """Return why the WSGI server that passes this request cannot serve clients; None if it can."""
    if "gunicorn.socket" in environ:
        return _several("several") if environ.get("wsgi.multiprocess") else None
    if "eventlet.input" in environ:
        return None
    return f"this server does not run on this WSGI server: {_ADVICE}"
