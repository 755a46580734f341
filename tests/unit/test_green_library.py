"""Which green-thread library a process uses."""

import sys
from types import SimpleNamespace

import pytest

from socketio_pg.core import green_library

#: What says which library, the strongest first: gunicorn's worker class, the library that has patched, and GREEN.
CHOICES = [
    ((None, None, None), "eventlet", None),
    ((None, None, "gevent"), "gevent", None),
    ((None, None, "eventlet"), "eventlet", None),
    ((None, None, "asyncio"), "eventlet", None),
    ((None, "gevent", None), "gevent", None),
    ((None, "eventlet", "gevent"), "eventlet", None),
    (("gevent", None, None), "gevent", None),
    (("gevent", "gevent", "gevent"), "gevent", None),
    (("eventlet", "eventlet", None), "eventlet", None),
    (("gevent", None, "eventlet"), "gevent", "GREEN is eventlet, but gunicorn's worker class is gevent"),
    (("eventlet", "eventlet", "gevent"), "eventlet", "start gunicorn with --worker-class gevent, or unset GREEN"),
    (("gevent", "eventlet", None), "gevent", "worker class is gevent, but eventlet has patched the standard library"),
]


@pytest.fixture(autouse=True)
def plain_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is not gunicorn's, that no library has patched, and whose environment has no GREEN."""
    for module in ("gunicorn.workers.geventlet", "gunicorn.workers.ggevent", "eventlet.patcher", "gevent.monkey"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.delenv("GREEN", raising=False)
    monkeypatch.delenv("SOCKETIO_PG_GREEN", raising=False)


@pytest.mark.parametrize(("told", "name", "problem"), CHOICES, ids=[str(told) for told, _, _ in CHOICES])
def test_library_is_the_worker_class_or_what_has_patched_or_the_setting(
    monkeypatch: pytest.MonkeyPatch, told: tuple[str | None, ...], name: str, problem: str | None
) -> None:
    worker_class, patched, setting = told
    if worker_class is not None:
        monkeypatch.setitem(sys.modules, f"gunicorn.workers.g{worker_class}", SimpleNamespace())
    # Each of the two asks its own library, which may be imported without having patched.
    for module, function, library in (
        ("eventlet.patcher", "is_monkey_patched", "eventlet"),
        ("gevent.monkey", "is_module_patched", "gevent"),
    ):
        answers = SimpleNamespace(**{function: lambda module, library=library: library == patched})
        monkeypatch.setitem(sys.modules, module, answers)
    if setting is not None:
        monkeypatch.setenv("GREEN", setting)
    assert green_library.name() == name
    found = green_library.problem()
    assert found is None if problem is None else problem in (found or "")


def test_prefixed_name_of_the_setting_counts_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREEN", "eventlet")
    monkeypatch.setenv("SOCKETIO_PG_GREEN", "gevent")
    assert green_library.name() == "gevent"
    assert str(green_library.mismatch("eventlet", "gevent")).startswith("SOCKETIO_PG_GREEN is gevent, but")
    green_library.want("eventlet")
    assert green_library.name() == "eventlet"
    monkeypatch.setenv("SOCKETIO_PG_GREEN", "asyncio")
    assert str(green_library.unknown()).startswith("SOCKETIO_PG_GREEN in the environment is 'asyncio'")


def test_wanted_library_is_that_of_later_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREEN", "eventlet")
    green_library.want("gevent")
    assert green_library.name() == "gevent"
    green_library.want(None)
    assert green_library.name() == "gevent"


@pytest.mark.parametrize("library", green_library.LIBRARIES)
def test_missing_library_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    assert green_library.missing(library) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = green_library.missing(library)
    assert found is not None
    assert f"-m pip install '{library}>=" in found
