"""The green-thread library of this process: eventlet, or gevent.

Imports nothing but the standard library, because it is used before that library patches it.
"""

import importlib.util
import os
import sys

#: The values of :data:`SETTING`, which are also the names of gunicorn's worker classes. The first is the default.
LIBRARIES = ("eventlet", "gevent")
#: The environment variable that chooses the library, except under gunicorn.
SETTING = "GREEN"
#: Library → the newest major version of gunicorn that has a worker class for it, if there is a limit.
LAST_GUNICORN = {"eventlet": 25}

#: Library → its successor, if it is no longer developed.
RETIRING = {"eventlet": "gevent"}
#: Library → the releases that are tested, as in requirements.txt and in the extra of setup.py.
REQUIREMENTS = {"eventlet": "eventlet>=0.41.3,<0.42", "gevent": "gevent>=25.9,<27"}
#: The libraries' own WSGI servers, which the development server uses: what they add to the environ of a request.
OWN_SERVERS = ("eventlet.input", "gevent.connection")

#: gunicorn imports the module of the worker class that it uses, and no other.
_WORKER_MODULES = {"gunicorn.workers.geventlet": "eventlet", "gunicorn.workers.ggevent": "gevent"}


def of_worker_class() -> str | None:
    """Return the library of gunicorn's worker class; None in a process that is not gunicorn's, or of another class."""
    return next((library for module, library in _WORKER_MODULES.items() if module in sys.modules), None)


def patching() -> str | None:
    """Return the library that has patched the standard library in this process, or None."""
    for library, patched in (("eventlet", _eventlet_patched), ("gevent", _gevent_patched)):
        if patched():
            return library
    return None


def _eventlet_patched() -> bool:
    patcher = sys.modules.get("eventlet.patcher")
    return patcher is not None and bool(patcher.is_monkey_patched("socket"))


def _gevent_patched() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("socket"))


def name() -> str:
    """Return the library to use: that of gunicorn's worker class, the one that has patched, or :data:`SETTING`'s."""
    return of_worker_class() or patching() or wanted() or LIBRARIES[0]


def wanted() -> str | None:
    """Return the value of :data:`SETTING` if it is the name of a library. `core.config` refuses other values."""
    value = os.environ.get(SETTING)
    return value if value in LIBRARIES else None


def want(library: str | None) -> None:
    """Let :data:`SETTING` choose ``library``, here and in processes that this one starts. None: does nothing."""
    if library is not None:
        os.environ[SETTING] = library


def problem() -> str | None:
    """Return why this process must not use its library, as a sentence without its full stop; None if it may."""
    library, worker_class, patched = name(), of_worker_class(), patching()
    if worker_class is not None and wanted() not in (None, worker_class):
        return (
            f"{SETTING} is {wanted()}, but gunicorn's worker class is {worker_class}: start gunicorn with "
            f"--worker-class {wanted()}, or unset {SETTING}"
        )
    if patched not in (None, library):
        return (
            f"gunicorn's worker class is {library}, but {patched} has patched this process: remove its monkey-patching"
        )
    return None


def missing(library: str) -> str | None:
    """Return how to install ``library``, as a sentence without its full stop; None if it is installed."""
    if importlib.util.find_spec(library) is not None:
        return None
    return f"the package {library} is missing: run {sys.executable} -m pip install '{REQUIREMENTS[library]}'"
