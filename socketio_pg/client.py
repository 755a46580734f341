"""Publish from any Python program, inside its own transaction. Imports neither Flask nor eventlet."""

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

    With ``durable`` a message goes through the log (``socketio_pg.publish()``): of any size up to MAX_PAYLOAD, nothing
    lost. Without it, it is a NOTIFY: equal ones of one transaction to one channel arrive once, PostgreSQL folds them.

    Nothing is sent before the caller's transaction commits, and nothing when it rolls back; on a connection in
    autocommit mode it is sent at once.

    A session is flushed first, unless it does not flush by itself (``autoflush``): its messages keep the order of the
    program, also among those of :func:`socketio_pg.orm.publishes`. For asyncio, where this is called through
    ``run_sync()``: ``await session.run_sync(lambda session: Client(session).notify("orders", 7))``.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def publish(
        self, channel: str, event_name: str, params: Mapping[str, Any] | None = None, *, durable: bool = False
    ) -> None:
        """Send ``{"event_name": event_name, "params": params}``.

        Raises as :meth:`notify`, TypeError when ``event_name`` is no string, and the driver's errors.
        """
        if not isinstance(event_name, str):
            raise TypeError("event_name must be a string")
        self.notify(channel, {"event_name": event_name, "params": params}, durable=durable)

    def notify(self, channel: str, payload: Any, *, durable: bool = False) -> None:
        """Send ``payload``, any JSON value.

        Raises :class:`InvalidChannelError`, :class:`InvalidRequestError` for what is not JSON,
        :class:`PayloadTooLargeError` over 7,999 bytes, and the driver's errors. The transaction is untouched by the
        first three. With ``durable`` the size is PostgreSQL's to judge: SQLSTATE SG002, among the driver's errors.
        """
        values = {"channel": validate_channel(channel), "payload": encode_payload(payload)}
        if not durable:
            check_size(values["payload"])
        function, payload_type = ("socketio_pg.publish", "jsonb") if durable else ("pg_notify", "text")
        execute(self._connection, f"SELECT {function}({{channel}}, CAST({{payload}} AS {payload_type}))", values)


def execute(connection: Any, statement: str, values: Mapping[str, Any]) -> None:
    """Run ``statement``, in which ``{name}`` stands for a value, on what a :class:`Client` takes.

    Raises TypeError for anything else, and the driver's errors.
    """
    if iscoroutinefunction(getattr(connection, "execute", None)):
        raise TypeError(f"{type(connection).__name__} is for asyncio; SQLAlchemy's have run_sync() for this")
    if hasattr(connection, "cursor"):
        with connection.cursor() as cursor:
            cursor.execute(statement.format(**{name: f"%({name})s" for name in values}), values)
    elif hasattr(connection, "execute"):
        _flush(connection)
        connection.execute(text(statement.format(**{name: f":{name}" for name in values})), values)
    else:
        raise TypeError(f"{type(connection).__name__} is not a connection of psycopg or SQLAlchemy")


def _flush(connection: Any) -> None:
    """What SQLAlchemy does before a query, and not before a text: write what the session holds."""
    session = connection() if isinstance(connection, scoped_session) else connection
    # Not within a flush, where an application's own event handler may publish.
    if isinstance(session, Session) and session.autoflush and not session._flushing:
        session.flush()
