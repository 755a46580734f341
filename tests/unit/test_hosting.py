"""Which programs can run the server."""

import sys
from types import SimpleNamespace

import click
import pytest
from flask.cli import ScriptInfo

from socketio_pg.engine import hosting


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


def test_number_of_workers() -> None:
    assert hosting.refusal_of_several(1) is None
    assert "one worker, not 4" in (hosting.refusal_of_several(4) or "")


@pytest.mark.parametrize(
    ("environ", "refusal"),
    [
        ({"gunicorn.socket": None, "wsgi.multiprocess": False}, None),
        ({"gunicorn.socket": None, "wsgi.multiprocess": True}, "on one worker, not several"),
        ({"eventlet.input": None, "wsgi.multiprocess": False}, None),
        ({"wsgi.multiprocess": False}, "does not run on this WSGI server"),
    ],
    ids=["gunicorn", "several workers", "eventlet", "others"],
)
def test_requests(environ: dict[str, object], refusal: str | None) -> None:
    found = hosting.refusal_of_request(environ)
    assert found is None if refusal is None else refusal in (found or "")
