"""Publish from any Python program, inside its own transaction. Imports neither Flask nor a green-thread library."""

from collections.abc import Mapping
from inspect import iscoroutinefunction
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session, scoped_session

from socketio_pg.core.channels import validate_channel
from socketio_pg.core.messages import check_size, encode_payload


class Client:
    """Publishes on ``connection``: psycopg2's, psycopg 3's, or SQLAlchemy's ``Connection`` or ``Session``
    (also a ``scoped_session``, such as Flask-SQLAlchemy's ``db.session``).

    With ``durable`` a message goes through the log (``socketio_pg.publish()``): it may have any size up to MAX_PAYLOAD,
    and is never lost. Otherwise it is sent with NOTIFY: PostgreSQL merges equal messages to one channel in one
    transaction.

    Messages are sent when the caller's transaction commits, and dropped when it rolls back; a connection in autocommit
    mode sends them immediately.

    A session with ``autoflush`` is flushed first, so that its messages keep the order of the program, including those
    of :func:`socketio_pg.orm.publishes`. With asyncio use ``run_sync()``:
    ``await session.run_sync(lambda session: Client(session).notify("orders", 7))``.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def publish(
        self, channel: str, event_name: str, params: Mapping[str, Any] | None = None, *, durable: bool = False
    ) -> None:
        """Send ``{"event_name": event_name, "params": params}``.

        Raises TypeError when ``event_name`` is not a string, and the errors of :meth:`notify`.
        """
        if not isinstance(event_name, str):
            raise TypeError("event_name must be a string")
        self.notify(channel, {"event_name": event_name, "params": params}, durable=durable)

    def notify(self, channel: str, payload: Any, *, durable: bool = False) -> None:
        """Send ``payload``, any JSON value.

        Raises :class:`InvalidChannelError`, :class:`InvalidRequestError` when the payload is not JSON,
        :class:`PayloadTooLargeError` over 7,999 bytes, and the driver's errors. The first three do not affect the
        transaction. With ``durable`` PostgreSQL checks the size: a driver's error with SQLSTATE SG002.
        """
        values = {"channel": validate_channel(channel), "payload": encode_payload(payload)}
        if not durable:
            check_size(values["payload"])
        function, payload_type = ("socketio_pg.publish", "jsonb") if durable else ("pg_catalog.pg_notify", "text")
        # Qualified: the caller's search_path may contain schemas of other owners.
        arguments = f"CAST({{channel}} AS pg_catalog.text), CAST({{payload}} AS pg_catalog.{payload_type})"
        execute(self._connection, f"SELECT {function}({arguments})", values)


def execute(connection: Any, statement: str, values: Mapping[str, Any]) -> None:
    """Run ``statement``, in which ``{name}`` stands for a value, on any connection that :class:`Client` accepts.

    Raises TypeError for anything else, and the driver's errors.
    """
    _check(connection)
    if hasattr(connection, "cursor"):
        with connection.cursor() as cursor:
            cursor.execute(statement.format(**{name: f"%({name})s" for name in values}), values)
    else:
        _flush(connection)
        connection.execute(text(statement.format(**{name: f":{name}" for name in values})), values)


def fetch(connection: Any, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of ``query``, which has no values. Connections and errors are those of :func:`execute`."""
    _check(connection)
    if hasattr(connection, "cursor"):
        with connection.cursor() as cursor:
            cursor.execute(query)
            return [tuple(row) for row in cursor.fetchall()]
    return [tuple(row) for row in connection.execute(text(query))]


def _check(connection: Any) -> None:
    if iscoroutinefunction(getattr(connection, "execute", None)):
        raise TypeError(f"{type(connection).__name__} is for asyncio; with SQLAlchemy use its run_sync()")
    if not hasattr(connection, "cursor") and not hasattr(connection, "execute"):
        raise TypeError(f"{type(connection).__name__} is not a psycopg or SQLAlchemy connection")


def _flush(connection: Any) -> None:
    """Flush a session. SQLAlchemy flushes before ORM queries, but not before ``text()``."""
    session = connection() if isinstance(connection, scoped_session) else connection
    # Not during a flush, in which an application's event handler may publish.
    if isinstance(session, Session) and session.autoflush and not session._flushing:
        session.flush()
