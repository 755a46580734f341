"""Client: its imports, and arguments that it refuses before it uses the connection."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from socketio_pg.client import Client
from socketio_pg.core.errors import InvalidChannelError, InvalidRequestError, PayloadTooLargeError
from socketio_pg.core.log_choice import LogChoice, database_key

#: Packages that a publishing script does not need and must not import indirectly (eventlet warns).
NOT_NEEDED = ["flask", "flask_socketio", "werkzeug", "eventlet", "gevent", "socketio", "engineio", "gunicorn"]


def test_import_loads_neither_flask_nor_green_threads(root: Path) -> None:
    program = "import sys, json, socketio_pg.client; json.dump(sorted(sys.modules), sys.stdout)"
    # -W error: a publishing script must not get eventlet's deprecation warnings either.
    result = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", program],
        cwd=root, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    imported = {name.split(".")[0] for name in json.loads(result.stdout)}
    assert "socketio_pg" in imported
    assert not imported & set(NOT_NEEDED)
    assert result.stderr == ""


def test_client_works_without_flask_and_green_threads(root: Path) -> None:
    program = f"""
import sys
for name in {NOT_NEEDED}:
    sys.modules[name] = None  # an import raises ImportError
from socketio_pg.client import Client
from socketio_pg import PayloadTooLargeError
try:
    Client(None).notify("foo", "x" * 8000, durable=False)
except PayloadTooLargeError:
    print("works")
"""
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert (result.stdout, result.stderr) == ("works\n", "")


class Untouchable:
    """A connection that fails on any use."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the connection was used: {name}")


@pytest.mark.parametrize(
    "channel", ["", "a" * 64, "a\0", "a\n", " a", "a*", "socketio_pg_bell", "\ud800", None, 5, b"foo"]
)
def test_invalid_channel_is_refused_before_sending(channel: Any) -> None:
    client = Client(Untouchable())
    with pytest.raises(InvalidChannelError):
        client.notify(channel, 1)
    with pytest.raises(InvalidChannelError):
        client.publish(channel, "created", {})


def type_name(value: object) -> str:
    """Return a parametrise id; the repr of an object differs between processes."""
    return type(value).__name__


@pytest.mark.parametrize("payload", [float("nan"), b"bytes", "\ud800", {1, 2}, object()], ids=type_name)
def test_payload_that_is_not_json_is_refused_before_sending(payload: Any) -> None:
    client = Client(Untouchable())
    with pytest.raises(InvalidRequestError):
        client.notify("foo", payload)
    with pytest.raises(InvalidRequestError):
        client.publish("foo", "created", {"value": payload})


def test_large_payload_is_refused_before_sending() -> None:
    client = Client(Untouchable())
    with pytest.raises(PayloadTooLargeError):
        client.notify("foo", "€" * 2_666, durable=False)
    with pytest.raises(PayloadTooLargeError):
        client.publish("foo", "created", {"value": "€" * 2_666}, durable=False)


@pytest.mark.parametrize("event_name", [None, 5, b"created", ["created"], {}], ids=repr)
def test_event_name_must_be_a_string(event_name: Any) -> None:
    with pytest.raises(TypeError, match="event_name must be a string"):
        Client(Untouchable()).publish("foo", event_name)


@pytest.mark.parametrize("connection", [None, "postgresql://host/db", 5, object()], ids=type_name)
def test_wrong_connection_type_is_reported(connection: Any) -> None:
    with pytest.raises(TypeError, match=f"{type(connection).__name__} is not a psycopg or SQLAlchemy connection"):
        Client(connection).notify("foo", 1)


def test_log_of_another_database_is_not_taken_for_that_of_a_new_connection() -> None:
    """Drivers other than psycopg do not name their database, and a new object may have the id() of one that is gone."""

    class Connection:
        pass

    choice = LogChoice()
    for present in [True, False] * 20:
        connection = Connection()
        assert choice.learn(database_key(connection), None, [(present, [], True)]) is present
        assert choice.known(database_key(connection), None) is present
        del connection
        assert choice.known(database_key(Connection()), None) is None
    assert choice.known(database_key(object()), None) is None  # without weak references
