"""Publish from any Python program, inside its own transaction. Imports neither Flask nor a green-thread library."""

import importlib
import sys
from collections.abc import Mapping
from inspect import iscoroutinefunction
from typing import Any

from socketio_pg.core.channels import validate_channel
from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.core.log_choice import LOG_CHOICE, database_key
from socketio_pg.core.messages import check_size, encode_payload
from socketio_pg.core.meta import validate_exclude, validate_traceparent
from socketio_pg.core.publications import validate_id


class Client:
    """Publishes on ``connection``: psycopg2's, psycopg 3's, or SQLAlchemy's ``Connection`` or ``Session``
    (also a ``scoped_session``, such as Flask-SQLAlchemy's ``db.session``).

    A message goes through the log (``socketio_pg.publish()``), where it may have any size up to MAX_PAYLOAD and is
    never lost, or it is sent with NOTIFY: PostgreSQL merges equal messages to one channel in one transaction.
    ``durable`` chooses: True for the log, False for NOTIFY. By default it is the log if the database has one, its
    schema belongs to a trusted role (docs/security.md; ``schema_owner`` names one more, as the setting SCHEMA_OWNER
    does), and the connection's role may publish through it. The client asks that once a minute for each database and
    role, with a query that neither fails the transaction nor calls a function of the schema.

    Messages are sent when the caller's transaction commits, and dropped when it rolls back; a connection in autocommit
    mode sends them immediately.

    A message with an ``id`` is published once: not if the id was published on its channel within five minutes. While
    another transaction with the same id is open, the call waits for its end. Ids need the schema, also for NOTIFY.

    The client with the Socket.IO id ``exclude`` does not get the message; ``traceparent``, that of W3C Trace Context,
    arrives with it. Both need the log.

    A session with ``autoflush`` is flushed first, so that its messages keep the order of the program, including those
    of :func:`socketio_pg.orm.publishes`. With asyncio use ``run_sync()``:
    ``await session.run_sync(lambda session: Client(session).notify("orders", 7))``.
    """

    def __init__(self, connection: Any, *, schema_owner: str | None = None) -> None:
        self._connection = connection
        self._schema_owner = schema_owner

    def publish(
        self,
        channel: str,
        event_name: str,
        params: Mapping[str, Any] | None = None,
        *,
        durable: bool | None = None,
        id: str | None = None,
        exclude: str | None = None,
        traceparent: str | None = None,
    ) -> bool:
        """Send ``{"event_name": event_name, "params": params}``. Return False if ``id`` was published before.

        Raises TypeError when ``event_name`` is not a string, and the errors of :meth:`notify`.
        """
        if not isinstance(event_name, str):
            raise TypeError("event_name must be a string")
        payload = {"event_name": event_name, "params": params}
        return self.notify(channel, payload, durable=durable, id=id, exclude=exclude, traceparent=traceparent)

    def notify(
        self,
        channel: str,
        payload: Any,
        *,
        durable: bool | None = None,
        id: str | None = None,
        exclude: str | None = None,
        traceparent: str | None = None,
    ) -> bool:
        """Send ``payload``, any JSON value. Return False if ``id`` was published before.

        Raises :class:`InvalidChannelError`, :class:`InvalidRequestError` when the payload is not JSON, the id or
        another argument is invalid, or what needs the log would go with NOTIFY, :class:`PayloadTooLargeError` over
        7,999 bytes for NOTIFY, and the driver's errors. The first three do not affect the transaction. Through the log
        PostgreSQL checks the size: a driver's error with SQLSTATE SG002. With an id, a transaction that is REPEATABLE
        READ or SERIALIZABLE can get a serialization failure.
        """
        values = publication_values(channel, payload, id, exclude, traceparent)
        statement = publication(values, self._has_log() if durable is None else durable)
        try:
            result = execute(self._connection, statement, values)
        except Exception:
            LOG_CHOICE.forget()  # the log may have been removed
            raise
        return result is not False

    def _has_log(self) -> bool:
        key = database_key(_driver_connection(self._connection))
        return LOG_CHOICE.has_log(key, self._schema_owner, lambda query: fetch(self._connection, query))


def publication_values(
    channel: str, payload: Any, id: str | None, exclude: str | None = None, traceparent: str | None = None
) -> dict[str, Any]:
    """Return the values of a publication for :func:`publication`. Raises as :meth:`Client.notify`, without a driver."""
    values: dict[str, Any] = {"channel": validate_channel(channel), "payload": encode_payload(payload)}
    if id is not None:
        values["id"] = validate_id(id)
    if exclude is not None:
        values["exclude"] = validate_exclude(exclude)
    if traceparent is not None:
        values["traceparent"] = validate_traceparent(traceparent)
    return values


def publication(values: dict[str, Any], durable: bool) -> str:
    """Return the statement of a publication, in which ``{name}`` stands for a value; add to ``values`` what it needs.

    Raises :class:`PayloadTooLargeError` over 7,999 bytes for NOTIFY, :class:`InvalidRequestError` if it needs the log.
    """
    chosen = [name for name in ("exclude", "traceparent") if name in values]
    if chosen and not durable:
        raise InvalidRequestError(f"{' and '.join(chosen)} needs the log, and the message would go with NOTIFY")
    # A small payload may go either way. A larger one has only the log, and an id needs the schema: PostgreSQL's error
    # about what is missing is the best one.
    if not durable:
        check_size(values["payload"])
    # Qualified: the caller's search_path may contain schemas of other owners. The payload is a text first: a program
    # may have told its driver how to write jsonb.
    arguments = "CAST({channel} AS pg_catalog.text), CAST(CAST({payload} AS pg_catalog.text) AS pg_catalog.jsonb)"
    if chosen or "id" in values:
        values["durable"] = durable
        arguments += ", CAST({durable} AS pg_catalog.bool)"
        named = [name for name in ("id", *chosen) if name in values]
        arguments += "".join(f", {name} => CAST({{{name}}} AS pg_catalog.text)" for name in named)
    elif not durable:
        arguments = "CAST({channel} AS pg_catalog.text), CAST({payload} AS pg_catalog.text)"
    function = "pg_catalog.pg_notify" if "durable" not in values and not durable else "socketio_pg.publish"
    return f"SELECT {function}({arguments})"


def execute(connection: Any, statement: str, values: Mapping[str, Any]) -> Any:
    """Run a SELECT, in which ``{name}`` stands for a value, on any connection that :class:`Client` accepts.

    Return the value of its row. Raises TypeError for other connections, and the driver's errors.
    """
    _check(connection)
    if hasattr(connection, "cursor"):
        with plain_cursor(connection) as cursor:
            cursor.execute(statement.format(**{name: f"%({name})s" for name in values}), values)
            return as_tuple(cursor.fetchone())[0]
    _flush(connection)
    return connection.execute(_text(statement.format(**{name: f":{name}" for name in values})), values).scalar()


def fetch(connection: Any, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of ``query``, which has no values. Connections and errors are those of :func:`execute`."""
    _check(connection)
    if hasattr(connection, "cursor"):
        with plain_cursor(connection) as cursor:
            cursor.execute(query)
            return [as_tuple(row) for row in cursor.fetchall()]
    return [tuple(row) for row in connection.execute(_text(query))]


def plain_cursor(connection: Any) -> Any:
    """Return a cursor of psycopg2 or psycopg 3 whose rows :func:`as_tuple` takes, whatever rows the program wants."""
    cursor = connection.cursor()
    if hasattr(connection, "row_factory"):  # psycopg 3
        cursor.row_factory = lambda _: tuple
    return cursor


def as_tuple(row: Any) -> tuple[Any, ...]:
    """Return a row as a tuple; psycopg2's RealDictCursor has dictionaries."""
    return tuple(row.values()) if isinstance(row, Mapping) else tuple(row)


def _driver_connection(connection: Any) -> Any:
    """Return the driver's connection of any that :class:`Client` accepts."""
    _check(connection)
    if hasattr(connection, "cursor"):
        return connection
    session = _session(connection)
    bound = connection if session is None else session.connection()
    return bound.connection.driver_connection


def _check(connection: Any) -> None:
    if iscoroutinefunction(getattr(connection, "execute", None)):
        raise TypeError(f"{type(connection).__name__} is for asyncio; with SQLAlchemy use its run_sync()")
    if not hasattr(connection, "cursor") and not hasattr(connection, "execute"):
        raise TypeError(f"{type(connection).__name__} is not a psycopg or SQLAlchemy connection")


def _flush(connection: Any) -> None:
    """Flush a session. SQLAlchemy flushes before ORM queries, but not before ``text()``."""
    session = _session(connection)
    # Not during a flush, in which an application's event handler may publish.
    if session is not None and session.autoflush and not session._flushing:
        session.flush()


# SQLAlchemy takes a tenth of a second to import, which the server and programs without it need not wait for. A program
# whose connection is SQLAlchemy's has imported it.


def _session(connection: Any) -> Any:
    """Return the SQLAlchemy session that ``connection`` is or, as a ``scoped_session``, names; None without one."""
    orm = sys.modules.get("sqlalchemy.orm")
    if orm is None:
        return None
    session = connection() if isinstance(connection, orm.scoped_session) else connection
    return session if isinstance(session, orm.Session) else None


def _text(statement: str) -> Any:
    return importlib.import_module("sqlalchemy").text(statement)
