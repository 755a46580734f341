"""Rows of a SQLAlchemy query together with the token of their snapshot: docs/snapshots.md."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Executable, Result, Select, event, func, select
from sqlalchemy.engine.result import IteratorResult, SimpleResultMetaData
from sqlalchemy.orm import Session, scoped_session

from socketio_pg.core.errors import InvalidRequestError

#: Isolation levels in which all statements of a transaction share one snapshot.
_SHARED = ("REPEATABLE READ", "SERIALIZABLE")
_TOKEN = "socketio_pg_snapshot"


def snapshot_of(
    session: Session | scoped_session[Session] | Connection, statement: Executable
) -> tuple[Result[Any], str]:
    """Execute a query. Return its result, which is complete, and the token of its snapshot.

    A subscription with ``since=token`` gets exactly the messages of the log that are not in the rows. In REPEATABLE
    READ and SERIALIZABLE the query may be any, with eager loading of all kinds. In READ COMMITTED, and with autocommit,
    it must be a ``select()`` that SQLAlchemy executes as one statement: `selectinload`, for example, sends others,
    which see a later state. Pending changes are flushed first, and objects of the session are refreshed.

    For an ``AsyncSession``: ``await session.run_sync(snapshot_of, statement)``.

    Raises :class:`InvalidRequestError` when the token cannot be exact, and SQLAlchemy's errors.
    """
    if isinstance(session, scoped_session):
        session = session()
    if isinstance(session, Session):
        if session.autoflush:
            session.flush()
        elif session.dirty or session.new or session.deleted:
            raise InvalidRequestError("the session has changes that are not flushed, and autoflush is off")
    connection = session if isinstance(session, Connection) else session.connection()
    if _is_shared(connection):
        token = connection.scalar(select(func.socketio_pg.snapshot()))
        return _copy(_execute(session, statement), 0)[0], str(token)
    return _one_statement(session, connection, statement)


def _is_shared(connection: Connection) -> bool:
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        return False
    return connection.get_isolation_level() in _SHARED


def _execute(session: Session | Connection, statement: Executable) -> Result[Any]:
    # Objects that were loaded in an earlier snapshot would keep their values.
    return session.execute(statement, execution_options={"populate_existing": True})


def _one_statement(
    session: Session | Connection, connection: Connection, statement: Executable
) -> tuple[Result[Any], str]:
    if not isinstance(statement, Select):
        raise InvalidRequestError("in READ COMMITTED snapshot_of() takes a select(); otherwise use REPEATABLE READ")
    if statement._for_update_arg is not None:
        raise InvalidRequestError(
            "in READ COMMITTED a select() with FOR UPDATE may return newer rows than its snapshot: use REPEATABLE READ"
        )
    snapshot = select(func.socketio_pg.snapshot()).scalar_subquery()
    while True:
        with _counting(connection) as statements:
            result, tokens = _copy(_execute(session, statement.add_columns(snapshot.label(_TOKEN))), 1)
        if len(statements) > 1:
            raise InvalidRequestError(
                "SQLAlchemy has sent further statements for this query (selectinload, for example), which see a later "
                "state in READ COMMITTED: use joinedload, or REPEATABLE READ"
            )
        if tokens:
            return result, tokens[0]
        # Without a row there is no token: is the query still empty when there is one?
        found, token = connection.execute(select(statement.exists(), snapshot)).one()
        if not found:
            return result, token


def _copy(result: Result[Any], last: int) -> tuple[Result[Any], list[str]]:
    """Return a complete result without the ``last`` columns, and the values of the last one of each row."""
    keys = list(result.keys())
    # A joined collection repeats its owner, and SQLAlchemy insists on unique().
    rows = [tuple(row) for row in (result.unique() if result._unique_filter_state else result)]
    kept = len(keys) - last
    metadata = SimpleResultMetaData(keys[:kept])
    return IteratorResult(metadata, iter([row[:kept] for row in rows])), [row[-1] for row in rows] if last else []


@contextmanager
def _counting(connection: Connection) -> Iterator[list[str]]:
    statements: list[str] = []

    def count(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(connection, "before_cursor_execute", count)
    try:
        yield statements
    finally:
        event.remove(connection, "before_cursor_execute", count)
