"""Connections to PostgreSQL, waited for in green threads. The only file that imports the driver.

Driver errors end here: what leaves is :class:`DatabaseUnavailableError`, :class:`DatabaseError` or a more special one.
"""

import contextlib
import ipaddress
import os
from collections.abc import Iterator
from typing import Any

import psycopg2
import psycopg2.extensions

from socketio_pg.core import green
from socketio_pg.core.config import LIBPQ_DEFAULTS, redact
from socketio_pg.core.errors import (
    ConfigurationError,
    DatabaseError,
    DatabaseTimeoutError,
    DatabaseUnavailableError,
    InvalidChannelError,
    LogNotInstalledError,
    PayloadTooLargeError,
    SocketIOPGError,
)


class Database:
    """One PostgreSQL database: its address, and connections to it.

    ``dsn`` is a libpq address (URL or ``key=value``); ``listen_dsn`` that of the LISTEN connection, when it differs.
    """

    #: Seconds for connecting, all hosts of the address together.
    connect_timeout = 5.0

    def __init__(self, dsn: str, listen_dsn: str | None = None) -> None:
        self._parameters = _parse(dsn)
        self._listen_parameters = _parse(listen_dsn) if listen_dsn else self._parameters
        # Process-wide in psycopg2; a green program wants it for all its connections anyway.
        psycopg2.extensions.set_wait_callback(_wait)

    def connect(self, *, listen: bool = False) -> Any:
        """A psycopg2 connection of one's own, in autocommit mode.

        Raises :class:`DatabaseUnavailableError`.
        """
        with translated_errors(self.connect_timeout):
            connection = _connect(self._listen_parameters if listen else self._parameters)
            connection.autocommit = True
            return connection

    @property
    def name(self) -> str | None:
        """The database's name, if the address has it."""
        return self._parameters.get("dbname")

    def __str__(self) -> str:
        """Where it is, for logs: without password and without what matters little."""
        shown = ("host", "port", "dbname", "user")
        return " ".join(f"{name}={self._parameters[name]}" for name in shown if name in self._parameters)


@contextlib.contextmanager
def translated_errors(seconds: float) -> Iterator[None]:
    """Run the body for up to ``seconds``; driver errors and lateness leave as errors of this package."""
    try:
        with green.timeout(seconds):
            yield
    except green.TimedOut:
        raise DatabaseTimeoutError(f"PostgreSQL did not answer within {seconds:g} s") from None
    except psycopg2.Error as error:
        raise _translate(error) from error
    except OSError as error:  # from resolving the host's name
        raise DatabaseUnavailableError(f"PostgreSQL's host is not to be found: {error.strerror}") from error


@contextlib.contextmanager
def transaction(connection: Any, seconds: float) -> Iterator[Any]:
    """A cursor in a transaction on ``connection``, committed at the end, rolled back when the body raises.

    Raises as :func:`translated_errors`. After :class:`DatabaseTimeoutError` the connection is of no use any more.
    """
    with translated_errors(seconds), connection.cursor() as cursor:
        cursor.execute("BEGIN")
        try:
            yield cursor
        except (psycopg2.Error, SocketIOPGError):
            if not connection.closed:
                cursor.execute("ROLLBACK")
            raise
        cursor.execute("COMMIT")


def _translate(error: psycopg2.Error) -> SocketIOPGError:
    # Only the first line, and never the server's detail: it may quote data.
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if error.pgcode == "SG001":  # sql/2_functions.sql
        return InvalidChannelError(lines[0])
    if error.pgcode == "SG002":
        return PayloadTooLargeError(lines[0])
    if error.pgcode in ("3F000", "42P01", "42883"):  # no such schema, table, function: we use none but our own
        return LogNotInstalledError("the log of this version is not installed in the database: run 'socketio-pg init'")
    if error.pgcode == "22023" and "payload string too long" in lines[0]:
        return PayloadTooLargeError("payload is too long for NOTIFY in this database's encoding")
    translated = DatabaseError(lines[0])
    if error.pgcode == "57014":  # statement_timeout, unless somebody has cancelled it
        translated = DatabaseTimeoutError(lines[0])
    elif isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError)):
        translated = DatabaseUnavailableError(lines[0])
    translated.sqlstate = error.pgcode
    return translated


def _parse(dsn: str) -> dict[str, str]:
    try:
        parameters = psycopg2.extensions.parse_dsn(dsn)
    except psycopg2.ProgrammingError:
        # libpq's own message quotes the address, password and all.
        raise ConfigurationError(
            f"{redact(dsn)!r} is not an address that PostgreSQL's libpq understands, like "
            "postgresql://user:password@host:5432/database."
        ) from None
    return LIBPQ_DEFAULTS | parameters


def _connect(parameters: dict[str, str]) -> Any:
    connection: Any = psycopg2.connect(psycopg2.extensions.make_dsn(**_resolved(parameters)))
    if connection.get_parameter_status("server_encoding") == "SQL_ASCII":
        # Bytes of any kind come out of such a database. With UTF8 here, one that is not UTF-8 would make PostgreSQL
        # end the session; LATIN1 lets all pass, and the text is decoded by decode_text().
        connection.set_client_encoding("LATIN1")
    else:
        connection.set_client_encoding("UTF8")
    return connection


def encode_text(connection: Any, text: str) -> str:
    """``text`` for a statement or its parameters on ``connection``.

    Undone by :func:`decode_text`; both change something only where :func:`_connect` chose LATIN1.
    """
    return text.encode().decode("latin-1") if connection.encoding == "LATIN1" else text


def decode_text(connection: Any, text: str) -> str:
    """The text that a notification on ``connection`` carried."""
    return text.encode("latin-1").decode("utf-8", "replace") if connection.encoding == "LATIN1" else text


def _resolved(parameters: dict[str, str]) -> dict[str, str]:
    """``parameters`` with ``hostaddr``: libpq would resolve names itself, and stop all green threads meanwhile."""
    hosts = (parameters.get("host") or os.environ.get("PGHOST") or "").split(",")
    if "hostaddr" in parameters or not any(_is_name(host) for host in hosts):
        return parameters
    ports = (parameters.get("port") or os.environ.get("PGPORT") or "5432").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    # A name may have several addresses, as localhost has; libpq then tries each, so each gets an entry.
    entries = [
        (host, address, port)
        for host, port in zip(hosts, ports, strict=False)
        for address in (green.resolve(host) if _is_name(host) else [host if host[:1] not in ("/", "@") else ""])
    ]
    names = ("host", "hostaddr", "port")
    return parameters | {name: ",".join(column) for name, column in zip(names, zip(*entries, strict=True), strict=True)}


def _is_name(host: str) -> bool:
    if not host or host.startswith(("/", "@")):
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


def _wait(connection: Any) -> None:
    """psycopg2's wait callback: lets other green threads run while PostgreSQL works."""
    while True:
        state = connection.poll()
        if state == psycopg2.extensions.POLL_OK:
            return
        if state == psycopg2.extensions.POLL_READ:
            green.wait_readable(connection.fileno())
        elif state == psycopg2.extensions.POLL_WRITE:
            green.wait_writable(connection.fileno())
        else:
            raise psycopg2.OperationalError(f"unexpected state {state} of the connection")


@contextlib.contextmanager
def session(database: Database) -> Iterator[Any]:
    """A connection in autocommit mode for the body. Raises :class:`DatabaseUnavailableError`, which says which one."""
    try:
        connection = database.connect()
    except DatabaseUnavailableError as error:
        raise type(error)(f"{database}: {error.message}") from None
    try:
        yield connection
    finally:
        connection.close()


def fetch(connection: Any, sql: str, *parameters: object, seconds: float = 30.0) -> list[tuple[Any, ...]]:
    """The rows of one statement. Raises as :func:`translated_errors`."""
    with translated_errors(seconds), connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)
        return list(cursor.fetchall()) if cursor.description else []


def fetch_named(connection: Any, sql: str, seconds: float = 30.0) -> list[dict[str, Any]]:
    """The rows of one statement, by the names of its columns. Raises as :func:`translated_errors`."""
    with translated_errors(seconds), connection.cursor() as cursor:
        cursor.execute(sql)
        columns = [column.name for column in cursor.description]
        return [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]
