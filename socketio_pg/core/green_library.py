"""The green-thread library of this process: eventlet, or gevent.

Imports nothing but the standard library and `core.variables`, because it is used before that library patches it.
"""

import importlib.util
import os
import sys

from socketio_pg.core import variables

#: The values of :data:`SETTING`, which are also the names of gunicorn's worker classes. The first is the default.
LIBRARIES = ("eventlet", "gevent")
#: The setting that chooses the library, except under gunicorn.
SETTING = "GREEN"
#: Library → the newest major version of gunicorn that has a worker class for it, if there is a limit.
LAST_GUNICORN = {"eventlet": 25}

#: Library → its successor, if it is no longer developed.
RETIRING = {"eventlet": "gevent"}
#: Library → the releases that are tested, as in requirements.txt and in the extra of setup.py.
REQUIREMENTS = {"eventlet": "eventlet>=0.41.3,<0.42", "gevent": "gevent>=25.9,<27"}
#: Library → the releases of gunicorn that are tested with it.
GUNICORN = {"eventlet": "gunicorn>=25.3.0,<25.4", "gevent": "gunicorn>=25.3.0,<28"}
#: The libraries' own WSGI servers, which the development server uses: what they add to the environ of a request.
OWN_SERVERS = ("eventlet.input", "gevent.connection")

#: gunicorn imports the module of the worker class that it uses, and no other.
_WORKER_MODULES = {"gunicorn.workers.geventlet": "eventlet", "gunicorn.workers.ggevent": "gevent"}


def of_worker_class() -> str | None:
    """Return the library of gunicorn's worker class; None in a process that is not gunicorn's, or of another class."""
    return next((library for module, library in _WORKER_MODULES.items() if module in sys.modules), None)


def patching() -> list[str]:
    """Return the libraries that have patched the standard library in this process."""
    return [name for name, patched in (("eventlet", _eventlet_patched), ("gevent", _gevent_patched)) if patched()]


def _eventlet_patched() -> bool:
    patcher = sys.modules.get("eventlet.patcher")
    return patcher is not None and bool(patcher.is_monkey_patched("socket"))


def _gevent_patched() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("socket"))


def name() -> str:
    """Return the library to use: that of gunicorn's worker class, the one that has patched, or :data:`SETTING`'s."""
    return of_worker_class() or next(iter(patching()), None) or wanted() or LIBRARIES[0]


def wanted() -> str | None:
    """Return the value of :data:`SETTING` if it is the name of a library. `core.config` refuses other values."""
    given = variables.in_environment(SETTING)
    value = given.value.strip().lower() if given else ""
    return value if value in LIBRARIES else None


def variable() -> str:
    """Return the name under which the environment has :data:`SETTING`, for messages."""
    given = variables.in_environment(SETTING)
    return given.name if given else SETTING


def unknown() -> str | None:
    """Return why the value of :data:`SETTING` is refused, as a sentence without its full stop; None if it is not.

    For programs that choose the library although other settings may be wrong, too.
    """
    given = variables.in_environment(SETTING)
    if given is None or not given.value.strip() or wanted() is not None:
        return None
    allowed = " or ".join(map(repr, LIBRARIES))
    return f"{given.name} in {given.place} is {given.value.strip()!r}; allowed: {allowed}"


def want(library: str | None) -> None:
    """Let :data:`SETTING` choose ``library``, here and in processes that this one starts. None: does nothing."""
    if library is not None:
        os.environ[variable()] = library


def problem() -> str | None:
    """Return why this process must not use its library, as a sentence without its full stop; None if it may."""
    library, worker_class = name(), of_worker_class()
    if worker_class is not None and (found := mismatch(worker_class, wanted())) is not None:
        return found
    others = [other for other in patching() if other != library]
    if not others:
        return None
    uses = "this process uses" if worker_class is None else "gunicorn's worker class is"
    return f"{uses} {library}, but {others[0]} has patched the standard library: remove its monkey-patching"


def mismatch(worker_class: str, wanted: str | None) -> str | None:
    """Return why gunicorn must not use ``worker_class`` when :data:`SETTING` is ``wanted``; None if it may."""
    if wanted in (None, worker_class):
        return None
    return (
        f"{variable()} is {wanted}, but gunicorn's worker class is {worker_class}: start gunicorn with "
        f"--worker-class {wanted}, or unset {variable()}"
    )


def missing(library: str) -> str | None:
    """Return how to install ``library``, as a sentence without its full stop; None if it is installed."""
    if importlib.util.find_spec(library) is not None:
        return None
    return f"the package {library} is missing: run {sys.executable} -m pip install '{REQUIREMENTS[library]}'"
