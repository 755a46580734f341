"""Database without a connection: URLs, passwords, errors, encodings."""

from collections.abc import Iterator
from types import SimpleNamespace

import psycopg2
import psycopg2.extensions
import pytest

from socketio_pg.core.errors import ConfigurationError, DatabaseError, DatabaseUnavailableError, SocketIOPGError
from socketio_pg.postgres.database import Database, decode_text, encode_text, translated_errors


@pytest.fixture(autouse=True)
def wait_callback() -> Iterator[None]:
    """Restore psycopg2's process-wide wait callback for other tests."""
    callback = psycopg2.extensions.get_wait_callback()
    yield
    psycopg2.extensions.set_wait_callback(callback)


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://user:s3cret@host:5432/db", "host=host port=5432 dbname=db user=user"),
        ("postgresql://user:s3cret%40tail1e@host/db?sslmode=require", "host=host dbname=db user=user"),
        ("host=h password='s3cret tail1e' dbname=db", "host=h dbname=db"),
        ("postgresql:///db?host=/run/postgresql&password=s3cret", "host=/run/postgresql dbname=db"),
        ("postgresql://h1:1,h2:2/db", "host=h1,h2 port=1,2 dbname=db"),
    ],
)
def test_database_in_logs_has_no_password(dsn: str, shown: str) -> None:
    assert str(Database(dsn)) == shown


@pytest.mark.parametrize(
    ("dsn", "listen_dsn", "name", "listening"),
    [
        ("dbname=d", None, "socketio_pg relay: of-libpq", "socketio_pg relay: of-libpq"),
        ("dbname=d application_name=shop", None, "socketio_pg relay: shop", "socketio_pg relay: shop"),
        ("dbname=d application_name=a", "dbname=d application_name=b", "socketio_pg relay: a", "socketio_pg relay: b"),
        ("dbname=d application_name=a", "dbname=d", "socketio_pg relay: a", "socketio_pg relay: a"),
    ],
)
def test_operators_name_follows_that_of_the_part(
    monkeypatch: pytest.MonkeyPatch, dsn: str, listen_dsn: str | None, name: str, listening: str
) -> None:
    monkeypatch.setenv("PGAPPNAME", "of-libpq")
    opened: list[str] = []

    def connect(address: str) -> None:
        opened.append(psycopg2.extensions.parse_dsn(address)["application_name"])
        raise psycopg2.OperationalError("not here")

    monkeypatch.setattr(psycopg2, "connect", connect)
    database = Database(dsn, listen_dsn)
    for listen in (False, True):
        with pytest.raises(DatabaseUnavailableError):
            database.connect("relay", listen=listen)
    assert opened == [name, listening]


@pytest.mark.parametrize("position", ["dsn", "listen_dsn"])
@pytest.mark.parametrize(
    "address",
    [
        "postgresql://user:s3cret@host:5432/db?nonsense=1",
        "postgresql://user:s3cret%zz@host/db",
        "postgresql://user:s3cret#tail1e@host/db?nonsense=1",
        "postgresql://user@host/db?password=s3cret&nonsense=1",
        "host=h password=s3cret nonsense=1",
        "host=h password='s3cret tail1e",
        r"host=h password=s3cret\ tail1e nonsense=1",
    ],
)
def test_invalid_url_error_does_not_disclose_the_password(position: str, address: str) -> None:
    with pytest.raises(ConfigurationError, match="not an address that PostgreSQL's libpq understands") as caught:
        Database(address) if position == "dsn" else Database("postgresql://host/db", address)
    assert "s3cret" not in caught.value.message
    assert "tail1e" not in caught.value.message
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (psycopg2.OperationalError("gone\nDETAIL: a row of yours"), DatabaseUnavailableError, "gone"),
        (psycopg2.InterfaceError("closed"), DatabaseUnavailableError, "closed"),
        (psycopg2.ProgrammingError("no table\nLINE 1: SELECT 's3cret'"), DatabaseError, "no table"),
        (psycopg2.OperationalError(), DatabaseUnavailableError, "OperationalError"),
        (
            OSError(-2, "Name or service not known"),
            DatabaseUnavailableError,
            "PostgreSQL's host name cannot be resolved: Name or service not known",
        ),
    ],
)
def test_driver_errors_are_translated(raised: Exception, expected: type[SocketIOPGError], message: str) -> None:
    with pytest.raises(SocketIOPGError) as caught, translated_errors(10):
        raise raised
    assert type(caught.value) is expected
    assert str(caught.value) == message
    assert message not in caught.value.message


@pytest.mark.parametrize("raised", [ConfigurationError("ours"), ZeroDivisionError()], ids=repr)
def test_other_errors_are_not_translated(raised: Exception) -> None:
    with pytest.raises(type(raised)) as caught, translated_errors(10):
        raise raised
    assert caught.value is raised


@pytest.mark.parametrize(("encoding", "sent"), [("UTF8", "€é😀"), ("LATIN1", "€é😀".encode().decode("latin-1"))])
def test_text_survives_sql_ascii(encoding: str, sent: str) -> None:
    # SQL_ASCII: psycopg2 uses LATIN1, so that all bytes pass, and the bytes are UTF-8.
    connection = SimpleNamespace(encoding=encoding)
    assert encode_text(connection, "€é😀") == sent
    assert decode_text(connection, sent) == "€é😀"


def test_invalid_utf8_becomes_replacement_characters() -> None:
    assert decode_text(SimpleNamespace(encoding="LATIN1"), "a\xff") == "a\ufffd"
