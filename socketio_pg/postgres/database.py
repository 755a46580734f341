"""Connections to PostgreSQL that block only the calling green thread. The only file that imports the driver.

Translates driver errors into :class:`DatabaseUnavailableError`, :class:`DatabaseError` or a more specific class.
"""

import contextlib
import functools
import ipaddress
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psycopg2
import psycopg2.extensions

from socketio_pg.core import green
from socketio_pg.core.addresses import LIBPQ_DEFAULTS, redact
from socketio_pg.core.errors import (
    ConfigurationError,
    DatabaseError,
    DatabaseRefusedError,
    DatabaseTimeoutError,
    DatabaseUnavailableError,
    InvalidChannelError,
    InvalidRequestError,
    LogNotInstalledError,
    PayloadTooLargeError,
    SocketIOPGError,
)
from socketio_pg.postgres import psycopg3
from socketio_pg.postgres.session import session_sql

#: Statements with unqualified operators, functions or types begin with this, since the role's search_path may contain a
#: schema of another owner that overloads them. LOCAL: a pooler in transaction mode passes sessions to other programs.
FIXED_PATH = "SET LOCAL search_path = pg_catalog, pg_temp"
#: What clients read in place of PostgreSQL's own text.
UNAVAILABLE = "the database is not available at the moment"
READ_ONLY = "the database is read-only"
#: Classes of SQLSTATE (manual, appendix A) that only a bug in a statement of this package causes, unless the code is
#: one of the others: read-only, closed by a timeout, without a privilege.
_BUGS = ("02", "03", "0B", "0Z", "20", "21", "22", "24", "25", "2D", "3B", "42")
_NO_BUGS = ("25006", "25P03", "25P04", "42501")


def wait_green() -> None:
    """Make the drivers wait in green threads, in the whole process: psycopg2, and psycopg 3 if the process is patched.

    A program calls it once, before it connects. psycopg2 has one wait callback for all connections.
    """
    psycopg2.extensions.set_wait_callback(_wait)
    psycopg3.make_green()


class Database:
    """One PostgreSQL database: its address, and connections to it.

    ``dsn`` is a libpq connection string (URL or ``key=value``); ``listen_dsn`` is the one of the LISTEN connection, if
    it differs. ``schema_owner`` is a role that is trusted as the owner of the schema socketio_pg (`trust`).
    """

    #: Seconds for connecting, for all hosts of the address together.
    connect_timeout = 5.0

    def __init__(self, dsn: str, listen_dsn: str | None = None, schema_owner: str | None = None) -> None:
        self.schema_owner = schema_owner
        #: Why the schema socketio_pg is not trusted, for the operator; None if it is, or does not exist.
        self.schema_problem: str | None = None
        #: The connections on which the schema has been verified. Each part clears it when it finds that the schema was
        #: removed: another role may create one of that name.
        self.verified: weakref.WeakSet[Any] = weakref.WeakSet()
        self._parameters = _parse(dsn)
        self._listen_parameters = _parse(listen_dsn) if listen_dsn else self._parameters
        #: The operator's own name, which each connection shows after that of its part, unless its address has another.
        self.label = self._parameters.get("application_name") or os.environ.get("PGAPPNAME") or ""

    def connect(self, part: str, *, listen: bool = False, settings: Mapping[str, str] | None = None) -> Any:
        """Return a new psycopg2 connection in autocommit mode, with the settings that all sessions need (`session`).

        ``part`` is what the connection is for: its application_name is ``socketio_pg part`` (docs/deploy.md lists
        them), and ``socketio_pg part: label`` with a :attr:`label`. ``settings`` are further ones.

        Raises :class:`DatabaseUnavailableError`, whose detail names the database.
        """
        parameters = self._listen_parameters if listen else self._parameters
        label = parameters.get("application_name") or self.label
        named = {**parameters, "application_name": f"socketio_pg {part}{label and f': {label}'}"}
        try:
            with translated_errors(self.connect_timeout):
                connection = _opened(_resolved(named))
                try:
                    connection.autocommit = True
                    _set_encoding(connection)
                    with connection.cursor() as cursor:
                        cursor.execute(session_sql(settings))
                except BaseException:
                    connection.close()
                    raise
                return connection
        except DatabaseUnavailableError as error:
            detailed = type(error)(error.message, detail=f"{_shown(parameters)}: {error}")
            detailed.sqlstate = error.sqlstate
            raise detailed from error

    @property
    def name(self) -> str | None:
        """The database's name, if the address contains it."""
        return self._parameters.get("dbname")

    def __str__(self) -> str:
        """Return host, port, database and user for logs, without the password and other parameters."""
        return _shown(self._parameters)


def _shown(parameters: Mapping[str, str]) -> str:
    return " ".join(f"{name}={parameters[name]}" for name in ("host", "port", "dbname", "user") if name in parameters)


@contextlib.contextmanager
def translated_errors(seconds: float) -> Iterator[None]:
    """Run the body for up to ``seconds``; translate driver errors and timeouts into errors of this package."""
    try:
        with green.timeout(seconds):
            yield
    except green.TimedOut:
        raise DatabaseTimeoutError(f"PostgreSQL did not answer within {seconds:g} s") from None
    except psycopg2.Error as error:
        raise _translate(error) from error
    except OSError as error:  # from resolving the host's name
        raise DatabaseUnavailableError(
            UNAVAILABLE, detail=f"PostgreSQL's host name cannot be resolved: {error.strerror}"
        ) from error


@contextlib.contextmanager
def transaction(connection: Any, seconds: float) -> Iterator[Any]:
    """A cursor in a transaction on ``connection``, committed at the end, rolled back when the body raises.

    Raises as :func:`translated_errors`. After :class:`DatabaseTimeoutError` the connection is unusable.
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
    # Only the first line, without the server's DETAIL, which may quote data.
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if error.pgcode == "SG001":  # sql/2_functions.sql
        return InvalidChannelError(lines[0])
    if error.pgcode == "SG002":
        return PayloadTooLargeError(lines[0])
    if error.pgcode in ("SG008", "SG010", "SG011"):
        return InvalidRequestError(lines[0])
    # No such schema, table, function or column: the server uses only those of the schema socketio_pg.
    if error.pgcode in ("3F000", "42P01", "42883", "42703"):
        return LogNotInstalledError("the log of this version is not installed in the database: run 'socketio-pg init'")
    if error.pgcode == "22023" and "payload string too long" in lines[0]:
        return PayloadTooLargeError("payload is too long for NOTIFY in this database's encoding")
    translated = _database_error(error, error.pgcode or "", lines[0])
    translated.sqlstate = error.pgcode
    return translated


def _database_error(error: psycopg2.Error, sqlstate: str, detail: str) -> DatabaseError:
    """Return the error of a code; docs/protocol.md has the table."""
    if sqlstate == "57014":  # query_canceled: by statement_timeout, or by an operator
        return DatabaseTimeoutError("the database did not answer in time", detail=detail)
    # Without a code it is an error of the driver.
    lost = type(error) is psycopg2.DatabaseError and not sqlstate
    if lost or isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError)):
        return DatabaseUnavailableError(UNAVAILABLE, detail=detail)
    if sqlstate and (sqlstate in _NO_BUGS or not sqlstate.startswith(_BUGS)):
        message = READ_ONLY if sqlstate == "25006" else "the database does not accept this at the moment"
        return DatabaseRefusedError(message, detail=detail)
    return DatabaseError("the database refused this", detail=detail)


def require_writable(connection: Any, seconds: float) -> None:
    """Raise :class:`DatabaseRefusedError` on a hot standby, and where transactions are read-only."""
    if fetch(connection, "SELECT current_setting('transaction_read_only')::bool", seconds=seconds)[0][0]:
        raise DatabaseRefusedError(READ_ONLY, detail=f"{READ_ONLY}: it is a hot standby, or does not allow to write")


def _parse(dsn: str) -> dict[str, str]:
    try:
        parameters = psycopg2.extensions.parse_dsn(dsn)
    except psycopg2.ProgrammingError:
        # libpq's own message quotes the address including the password.
        raise ConfigurationError(
            f"{redact(dsn)!r} is not an address that PostgreSQL's libpq understands, such as "
            "postgresql://user:password@host:5432/database."
        ) from None
    return LIBPQ_DEFAULTS | parameters


def _opened(parameters: dict[str, str]) -> Any:
    """Return a new connection. Raises the driver's errors."""
    try:
        return psycopg2.connect(psycopg2.extensions.make_dsn(**parameters))
    except UnicodeDecodeError as error:
        # Until the session has an encoding, PostgreSQL's texts are in the language and encoding of its lc_messages.
        # psycopg2 decodes them as UTF-8, and raises this error in place of the one that it was about to report.
        text = bytes(error.object).decode("utf-8", "replace").strip().partition("\n")[0]
        remedy = "lc_messages = 'C' makes this text readable, which is not UTF-8"
        raise psycopg2.OperationalError(f"{text} ({remedy})") from None


def _set_encoding(connection: Any) -> None:
    if connection.get_parameter_status("server_encoding") == "SQL_ASCII":
        # Such a database may return any bytes. With client_encoding UTF8, PostgreSQL ends the session on bytes that are
        # not UTF-8; LATIN1 passes all bytes, and decode_text() decodes them.
        connection.set_client_encoding("LATIN1")
    else:
        connection.set_client_encoding("UTF8")


def encode_text(connection: Any, text: str) -> str:
    """Encode ``text`` for a statement or its parameters on ``connection``; the inverse of :func:`decode_text`.

    Both return ``text`` unchanged unless :func:`_set_encoding` has chosen LATIN1.
    """
    return text.encode().decode("latin-1") if connection.encoding == "LATIN1" else text


def encoder(connection: Any) -> Callable[[str], str] | None:
    """Return :func:`encode_text` for ``connection``; None where it returns every text unchanged."""
    return functools.partial(encode_text, connection) if connection.encoding == "LATIN1" else None


def decode_text(connection: Any, text: str) -> str:
    """Decode ``text`` from a notification on ``connection``."""
    return text.encode("latin-1").decode("utf-8", "replace") if connection.encoding == "LATIN1" else text


def _resolved(parameters: dict[str, str]) -> dict[str, str]:
    """Add ``hostaddr`` to ``parameters``; otherwise libpq resolves names itself and blocks all green threads."""
    hosts = (parameters.get("host") or os.environ.get("PGHOST") or "").split(",")
    if "hostaddr" in parameters or not any(_is_name(host) for host in hosts):
        return parameters
    ports = (parameters.get("port") or os.environ.get("PGPORT") or "5432").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    # A name such as localhost may have several addresses; each gets an entry, so that libpq tries all of them.
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
    """psycopg2's wait callback: runs other green threads while PostgreSQL works."""
    try:
        while True:
            state = connection.poll()
            if state == psycopg2.extensions.POLL_OK:
                return
            if state == psycopg2.extensions.POLL_READ:
                green.wait_readable(connection.fileno())
            elif state == psycopg2.extensions.POLL_WRITE:
                green.wait_writable(connection.fileno())
            else:
                raise psycopg2.OperationalError(f"unexpected connection state {state}")
    except BaseException:
        # Otherwise the traceback, which a killed green thread keeps, would keep a connection that was being opened, and
        # its session in PostgreSQL, until the garbage collector runs. Nobody else can close it.
        del connection
        raise


@contextlib.contextmanager
def session(database: Database, part: str) -> Iterator[Any]:
    """A connection as of :meth:`Database.connect` for the body. Raises :class:`DatabaseUnavailableError`."""
    connection = database.connect(part)
    try:
        yield connection
    finally:
        connection.close()


def fetch(connection: Any, sql: str, *parameters: object, seconds: float = 30.0) -> list[tuple[Any, ...]]:
    """Return the rows of one statement, or of the last one, run with :data:`FIXED_PATH`.

    One dictionary as parameters has named ones. Raises as :func:`translated_errors`.
    """
    return fetch_as_is(connection, f"{FIXED_PATH}; {sql}", *parameters, seconds=seconds)


def fetch_as_is(connection: Any, sql: str, *parameters: object, seconds: float) -> list[tuple[Any, ...]]:
    """Like :func:`fetch`, for a session with a fixed search_path, and for ROLLBACK."""
    named = len(parameters) == 1 and isinstance(parameters[0], dict)
    with translated_errors(seconds), connection.cursor() as cursor:
        cursor.execute(sql, parameters[0] if named else parameters or None)
        return list(cursor.fetchall()) if cursor.description else []


def is_usable(connection: Any) -> bool:
    """Return True if ``connection`` is open, outside a transaction, and has no statement without a response."""
    status = psycopg2.extensions.TRANSACTION_STATUS_IDLE
    return not connection.closed and bool(connection.info.transaction_status == status)


def is_busy(connection: Any) -> bool:
    """Return True if ``connection`` is closed, or has a statement without a response: it cannot be used again."""
    statuses = (psycopg2.extensions.TRANSACTION_STATUS_ACTIVE, psycopg2.extensions.TRANSACTION_STATUS_UNKNOWN)
    return bool(connection.closed) or connection.info.transaction_status in statuses


def fetch_named(connection: Any, sql: str, seconds: float = 30.0) -> list[dict[str, Any]]:
    """Like :func:`fetch`, with each row as a dictionary by column name."""
    with translated_errors(seconds), connection.cursor() as cursor:
        cursor.execute(f"{FIXED_PATH}; {sql}")
        columns = [column.name for column in cursor.description]
        return [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]
