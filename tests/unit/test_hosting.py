"""Which programs can run the server."""

import sys
from types import SimpleNamespace

import click
import pytest
from flask.cli import ScriptInfo

from socketio_pg.core import green_library
from socketio_pg.engine import hosting

pytestmark = pytest.mark.green


@pytest.fixture(autouse=True)
def _another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.delenv("SERVER_SOFTWARE", raising=False)


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("/usr/bin/uvicorn", "uvicorn"), ("/x/site-packages/uvicorn/__main__.py", "uvicorn"),
        ("waitress-serve", "waitress-serve"), ("/x/waitress/__main__.py", "waitress"), ("uwsgi", "uwsgi"),
        ("hypercorn", "hypercorn"), ("/srv/uvicorn/manage.py", None), ("/usr/bin/gunicorn", None),
        ("socketio_pg/server.py", None), ("/x/pytest/__main__.py", None), ("-c", None), ("", None),
    ],
)  # fmt: skip
def test_programs_by_their_names(monkeypatch: pytest.MonkeyPatch, program: str, name: str | None) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    refusal = hosting.refusal_at_start()
    assert (refusal is None) is (name is None)
    if refusal is not None:
        assert refusal.startswith(f"this server does not run on {name}: ")
        assert hosting.COMMAND in refusal


@pytest.mark.parametrize(
    ("worker", "name"),
    [
        ("geventlet", None), ("ggevent", None), ("sync", "gunicorn's worker class sync"),
        ("gthread", "gunicorn's worker class gthread"), ("gasgi", "gunicorn's worker class asgi"),
        ("others", "this worker class of gunicorn"),
    ],
)  # fmt: skip
def test_worker_classes_of_gunicorn(monkeypatch: pytest.MonkeyPatch, worker: str, name: str | None) -> None:
    monkeypatch.setenv("SERVER_SOFTWARE", "gunicorn/25.3.0")
    monkeypatch.delenv("GREEN", raising=False)
    for module in [module for module in sys.modules if module.startswith("gunicorn.")]:
        monkeypatch.delitem(sys.modules, module)
    assert hosting.refusal_at_start() is None, "a program that gunicorn's application has started"
    for module in ("gunicorn.arbiter", f"gunicorn.workers.{worker}"):
        monkeypatch.setitem(sys.modules, module, SimpleNamespace())
    refusal = hosting.refusal_at_start()
    assert (refusal or "").partition(":")[0] == ("" if name is None else f"this server does not run on {name}")


@pytest.mark.parametrize(
    ("command", "of", "refused"),
    [("run", ScriptInfo(), True), ("shell", ScriptInfo(), False), ("run", None, False), ("run", {}, False)],
)
def test_only_the_command_run_of_flask_is_refused(command: str, of: object, refused: bool) -> None:
    with click.Context(click.Command(command), info_name=command, obj=of):
        assert (hosting.refusal_at_start() is not None) is refused


@pytest.mark.parametrize(
    ("arguments", "worker_class", "workers"),
    [
        ("", None, None), ("-k gevent -w 2", "gevent", "2"), ("-kgevent -w2", "gevent", "2"), ("-k", None, None),
        ("--worker-class=gevent --workers=2", "gevent", "2"), ("-k eventlet -k gevent", "gevent", None),
        ("--worker-connections 5 -c python:x app:app --log-level info", None, None),
    ],
)  # fmt: skip
def test_options_of_gunicorn(arguments: str, worker_class: str | None, workers: str | None) -> None:
    found = hosting.options_in(arguments.split())
    assert (found.worker_class, found.workers) == (worker_class, workers)


@pytest.mark.parametrize(
    ("worker_class", "wanted", "gunicorn", "refusal"),
    [
        ("eventlet", None, "25.3.0", None), ("eventlet", "eventlet", "25.3.0", None), ("gevent", None, "27.0.1", None),
        ("eventlet", None, "26.0.0", "gunicorn 26.0.0 has no worker class for eventlet"),
        ("eventlet", "gevent", "25.3.0", "GREEN is gevent, but gunicorn's worker class is eventlet"),
        ("gevent", "eventlet", "27.0.1", "start gunicorn with --worker-class eventlet, or unset GREEN"),
        ("gevent_pywsgi", None, "25.3.0", "does not run on gunicorn's worker class gevent_pywsgi"),
        ("my.Worker", "gevent", "27.0.1", None),
    ],
)  # fmt: skip
def test_worker_classes_before_the_start(
    worker_class: str, wanted: str | None, gunicorn: str, refusal: str | None
) -> None:
    found = hosting.refusal_of_worker_class(worker_class, wanted, gunicorn)
    assert found is None if refusal is None else refusal in (found or "")


def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = hosting.refusal_of_worker_class("gevent", "gevent", "27.0.1") or ""
    assert "the package gevent is missing: run " in found
    assert "pip install 'gevent>=" in found


@pytest.mark.parametrize(
    ("protocols", "cleartext", "named"),
    [
        (None, None, None), ("h1", "off", None), (["h1"], None, None), ("h2,h1", None, "http_protocols h2,h1"),
        (["h1", "h2"], "both", "http_protocols h1,h2"), (["h1"], "upgrade", "http2_cleartext upgrade"),
    ],
)  # fmt: skip
def test_http2(protocols: str | list[str] | None, cleartext: str | None, named: str | None) -> None:
    found = hosting.refusal_of_http2(protocols, cleartext)
    assert found is None if named is None else f"gunicorn's {named}: " in (found or "")


@pytest.mark.parametrize(
    ("worker_class", "green", "patched", "problem"),
    [
        ("gevent", None, ["gevent"], None), ("eventlet", "eventlet", ["eventlet"], None), (None, None, [], None),
        (None, "gevent", ["gevent"], None), ("eventlet", "gevent", ["eventlet"], "GREEN is gevent, but"),
        ("gevent", None, ["eventlet", "gevent"], "worker class is gevent, but eventlet has patched"),
        ("eventlet", None, ["eventlet", "gevent"], "worker class is eventlet, but gevent has patched"),
        (None, None, ["eventlet", "gevent"], "this process uses eventlet, but gevent has patched"),
    ],
)  # fmt: skip
def test_one_library_in_a_process(
    monkeypatch: pytest.MonkeyPatch, worker_class: str | None, green: str | None, patched: list[str],
    problem: str | None,
) -> None:  # fmt: skip
    monkeypatch.setattr(green_library, "of_worker_class", lambda: worker_class)
    monkeypatch.setattr(green_library, "patching", lambda: patched)
    monkeypatch.setenv("GREEN", green or "")
    found = green_library.problem()
    assert found is None if problem is None else problem in (found or "")


@pytest.mark.parametrize(
    ("value", "wanted", "wrong"), [("", None, False), (" GEVENT", "gevent", False), ("asyncio", None, True)]
)
def test_the_setting(monkeypatch: pytest.MonkeyPatch, value: str, wanted: str | None, wrong: bool) -> None:
    monkeypatch.setenv("GREEN", value)
    assert green_library.wanted() == wanted
    assert (green_library.unknown() is not None) is wrong


def test_number_of_workers() -> None:
    assert hosting.refusal_of_several(1, started_with_one=True) is None
    assert hosting.refusal_of_several(64, started_with_one=False) is None
    assert "at most 64 workers, not 65" in (hosting.refusal_of_several(65, started_with_one=False) or "")
    assert "restart it with --workers 4" in (hosting.refusal_of_several(4, started_with_one=True) or "")


@pytest.mark.parametrize(
    ("environ", "refusal"),
    [
        ({"gunicorn.socket": None, "wsgi.multiprocess": False}, None),
        ({"gunicorn.socket": None, "wsgi.multiprocess": True}, "only with its gunicorn configuration"),
        ({"eventlet.input": None, "wsgi.multiprocess": False}, None),
        ({"gevent.connection": None, "wsgi.multiprocess": False}, None),
        ({"wsgi.multiprocess": False}, "does not run on this WSGI server"),
    ],
    ids=["gunicorn", "several workers", "eventlet", "gevent", "others"],
)
def test_requests(environ: dict[str, object], refusal: str | None) -> None:
    found = hosting.refusal_of_request(environ)
    assert found is None if refusal is None else refusal in (found or "")
