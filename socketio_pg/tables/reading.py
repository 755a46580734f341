"""Reads tables as clients: definitions, rights of roles, and the rows together with their place in the log."""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from socketio_pg.core import green
from socketio_pg.core.errors import (
    DatabaseError,
    DatabaseUnavailableError,
    ForbiddenError,
    InvalidRequestError,
    LogNotInstalledError,
    SocketIOPGError,
    TooManyRowsError,
)
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.postgres.database import Database, fetch, fetch_as_is, translated_errors
from socketio_pg.pubsub.filters import Filter, Reader
from socketio_pg.tables import exact
from socketio_pg.tables.conditions import Conditions
from socketio_pg.tables.connections import Connections
from socketio_pg.tables.definition import Definition, Rights, definition, rights
from socketio_pg.tables.requests import Order

_limited_log = RateLimitedLog(logging.getLogger("socketio_pg.tables"))

#: As for the trigger function of watches: the values of rows look as in the messages.
SETTINGS = (
    "SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO'; SET LOCAL IntervalStyle = 'postgres'; "
    "SET LOCAL bytea_output = 'hex'"
)
#: The newest position in this snapshot, and the committed messages of a channel that have none yet.
_PLACE = """
SELECT head.epoch::text,
    greatest(head.trimmed, (SELECT log.position FROM socketio_pg.log ORDER BY log.position DESC LIMIT 1)),
    ARRAY(SELECT outbox.id FROM socketio_pg.outbox WHERE outbox.channel = %s)
FROM socketio_pg.head
"""
_POSITIONS = """
SELECT id, position FROM socketio_pg.log WHERE position > %s AND id = ANY (%s)
UNION ALL SELECT id, NULL FROM socketio_pg.outbox WHERE id = ANY (%s)
"""
_BECOME = """
SELECT pg_catalog.set_config('request.jwt.claims', %(claims)s, true), pg_catalog.set_config('role', %(role)s, true)
"""
_RIGHTS = """
SELECT pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE'), pg_catalog.has_table_privilege(c.oid, 'SELECT'),
    ARRAY(SELECT a.attnum FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
            AND pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT')),
    pg_catalog.row_security_active(c.oid)
FROM pg_catalog.pg_class AS c WHERE c.oid OPERATOR(pg_catalog.=) %(relation)s::pg_catalog.oid
"""
#: Whether the table's files are still those of the snapshot. TRUNCATE ignores snapshots: a SELECT after it finds none,
#: even in an older snapshot (PostgreSQL's manual, "Caveats" of chapter 13). The SELECT keeps it from happening later.
_SAME_FILES = """
SELECT pg_catalog.bool_and(c.relfilenode OPERATOR(pg_catalog.=) coalesce(pg_catalog.pg_relation_filenode(c.oid), 0))
FROM pg_catalog.pg_class AS c WHERE c.oid OPERATOR(pg_catalog.=) %(relation)s::pg_catalog.oid
    OR c.oid OPERATOR(pg_catalog.=) ANY (
        SELECT p.relid FROM pg_catalog.pg_partition_tree(%(relation)s::pg_catalog.oid) AS p)
"""
#: SQLSTATEs of a role that does not exist, or that the server's role is no member of.
_NO_ROLE = ("22023", "42501")
#: SQLSTATEs that say nothing about the request: `access.policies`.
_TRANSIENT = ("40", "53", "57", "58", "25006", "55P03")


@dataclass(frozen=True, slots=True)
class Identity:
    """A role of PostgreSQL, and the claims (JSON text) that its policies read."""

    role: str
    claims: str


@dataclass(frozen=True, slots=True)
class Query:
    """The rows that a client asks for."""

    filter: Filter | None
    order: tuple[Order, ...]
    limit: int | None


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows as JSON texts, read in one snapshot, in which the log's newest position was ``position``.

    The messages with the ids ``pending`` get later positions, and the rows include them. ``keys`` are those of the rows
    in the form of :func:`key_text`, if the role's rights are checked. ``complete``: no limit left rows out.
    """

    epoch: str
    position: int
    pending: frozenset[int]
    rights: Rights
    rows: Sequence[str]
    keys: frozenset[str]
    complete: bool


def key_text(values: Sequence[Any]) -> str:
    """Return a text for the values of a key, as of :func:`exact.loads`: equal for equal keys."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


class TableReader:
    """Reads tables of ``database``. At most ``max_rows`` rows with ``max_bytes`` bytes for one client."""

    #: Seconds for the SELECT of the rows, and to wait for other clients' before.
    timeout, patience = 10.0, 20.0
    #: Attempts to read rows of a table that is being truncated.
    attempts = 5
    #: Rows that are fetched together; and the rows that are read at most, as a multiple of those that a client may get.
    fetched, scanned = 500, 20

    def __init__(self, database: Database, max_rows: int, max_bytes: int) -> None:
        self._rows = Connections(database, 2)
        self._small = Connections(database, 1)
        self._max_rows = max_rows
        self._max_bytes = max_bytes

    def start(self) -> None:
        self._rows.start()
        self._small.start()

    def stop(self) -> None:
        self._rows.stop()
        self._small.stop()

    def define(self, name: str) -> Definition:
        """Return the definition of a table. Raises :class:`InvalidRequestError`, whose message names the remedy."""
        rows = self._small.run(
            lambda connection: fetch(connection, "SELECT socketio_pg.live_table(%s)", name, seconds=self.timeout),
            self.timeout,
        )
        return definition(name, rows[0][0])

    def rights(self, table: Definition, identity: Identity) -> Rights:
        """Return what a client may read of a table. Raises :class:`ForbiddenError`."""

        def read(connection: Any) -> Rights:
            execute(connection, "BEGIN READ ONLY", self.timeout)
            return self._become(connection, table, identity)

        return self._small.run(read, self.timeout)

    def positions(self, after: int, ids: Collection[int]) -> dict[int, int | None]:
        """Return the positions of messages after a position by their ids; None for those that have none yet."""
        wanted = list(ids)
        rows = self._small.run(
            lambda connection: fetch(connection, _POSITIONS, after, wanted, wanted, seconds=self.timeout),
            self.timeout,
        )
        return dict(rows)

    def rows(self, table: Definition, identity: Identity, query: Query, expected: Rights) -> Rows:
        """Read rows as a client, with the rights that it is ``expected`` to have; with others there are no rows.

        Raises :class:`ForbiddenError`, :class:`TooManyRowsError`, :class:`InvalidRequestError` or
        :class:`DatabaseUnavailableError`.
        """
        for _ in range(self.attempts):
            found = self._rows.run(
                lambda connection: self._read(connection, table, identity, query, expected), self.patience
            )
            if found is not None:
                return found
        raise DatabaseUnavailableError("the table is truncated too often: retry")

    def _read(
        self, connection: Any, table: Definition, identity: Identity, query: Query, expected: Rights
    ) -> Rows | None:
        """Return None if the table was truncated in the meantime."""
        limit = int(self.timeout * 1000)
        execute(
            connection,
            f"BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET LOCAL statement_timeout = {limit}; {SETTINGS}",
            self.timeout,
        )
        epoch, position, pending = fetch_as_is(connection, _PLACE, table.channel, seconds=self.timeout)[0]
        found = self._become(connection, table, identity)
        rows: list[str] = []
        keys: set[str] = set()
        complete = True
        if found == expected:
            with as_client(identity.role):
                complete = self._fetch(connection, table, query, found, rows, keys)
                relation = {"relation": table.relation}
                if fetch_as_is(connection, _SAME_FILES, relation, seconds=self.timeout) != [(True,)]:
                    return None
        return Rows(epoch, position, frozenset(pending), found, rows, frozenset(keys), complete)

    def _become(self, connection: Any, table: Definition, identity: Identity) -> Rights:
        """Take on the role of a client, and return what it may read."""
        names = {"role": identity.role, "claims": identity.claims, "relation": table.relation}
        try:
            fetch_as_is(connection, _BECOME, names, seconds=self.timeout)
            found = fetch_as_is(connection, _RIGHTS, names, seconds=self.timeout)
        except DatabaseError as error:
            if error.sqlstate not in _NO_ROLE:
                raise
            _limited_log(logging.WARNING, "clients cannot read tables as role %r: %s", identity.role, error)
            raise ForbiddenError("the server cannot read tables with your role") from None
        if not found:
            raise InvalidRequestError("the table was dropped")
        in_schema, reads_table, readable, checked = found[0]
        return rights(table, reads_table=reads_table, readable=readable, in_schema=in_schema, checked=checked)

    def _fetch(
        self, connection: Any, table: Definition, query: Query, found: Rights, rows: list[str], keys: set[str]
    ) -> bool:
        """Fetch rows and their keys. Return whether there are no more of them."""
        # Without a filter, PostgreSQL alone decides about the rows.
        most = self._max_rows + 1 if query.limit is None else query.limit + 1
        statement, parameters = select(table, query, found, most if query.filter is None else None)
        with translated_errors(self.timeout), connection.cursor() as cursor:
            cursor.execute(f"DECLARE found NO SCROLL CURSOR FOR {statement}", parameters)
        size = read = 0
        pause = pauses()
        while True:
            page = fetch_as_is(connection, f"FETCH {self.fetched} FROM found", seconds=self.timeout)
            for row, key in page:
                pause()
                if query.filter is not None:
                    reader = Reader(row, pause)
                    if not query.filter.holds(reader, reader.values):
                        continue
                if len(rows) == query.limit:
                    return False
                size += len(row) if row.isascii() else len(row.encode())
                if len(rows) == self._max_rows or size > self._max_bytes:
                    raise TooManyRowsError(
                        f"there are more than {self._max_rows} rows, or more than {self._max_bytes} bytes of them: "
                        "use where, or limit"
                    )
                rows.append(row)
                if found.checked:
                    keys.add(key_text(exact.loads(key)))
            read += len(page)
            if len(page) < self.fetched:
                return True
            if read >= self.scanned * self._max_rows:
                raise TooManyRowsError("too many rows have to be searched: use a narrower where")


@contextlib.contextmanager
def as_client(role: str) -> Iterator[None]:
    """Translate errors of statements that run as a client: policies, casts and other code of the operator's."""
    try:
        yield
    except LogNotInstalledError as error:
        if getattr(error.__cause__, "pgcode", None) == "42883":
            raise InvalidRequestError("order: the type of a column has no order") from None
        raise DatabaseUnavailableError("the table has just changed: retry") from None
    except DatabaseUnavailableError:
        raise
    except DatabaseError as error:
        raise client_error(role, error.sqlstate or "", str(error)) from None


def client_error(role: str, sqlstate: str, text: str) -> SocketIOPGError:
    """Return what a client is told when a statement that runs as its role fails."""
    if sqlstate.startswith(_TRANSIENT):
        return DatabaseUnavailableError("the table cannot be read at the moment: retry")
    if sqlstate in ("22P05", "22P02"):
        return InvalidRequestError("a row has a value that has no JSON")
    _limited_log(logging.WARNING, "role %r cannot read a live table: %s %s", role, sqlstate, text[:200])
    return ForbiddenError("the table cannot be read with your role")


def select(table: Definition, query: Query, found: Rights, most: int | None) -> tuple[str, dict[str, Any]]:
    """Return the statement that reads rows, as JSON texts with the values of their keys, and its parameters.

    ``most``: the maximum number of rows.
    """
    columns = {column.name: column for column in table.columns if column.name in found.columns}
    conditions = Conditions(query.filter, columns)
    ordered = [(columns[one.column], one.descending) for one in query.order]
    ordered += [(columns[name], False) for name in table.key if name not in {one.column for one in query.order}]
    order = ", ".join(f"r.{column.escaped}{' DESC' if down else ''}" for column, down in ordered)
    picked = ", ".join(f"r.{column.escaped}" for column in columns.values())
    key = ", ".join(f"l.{columns[name].escaped}" for name in table.key)
    limit = "" if most is None else f" LIMIT {most}"
    statement = (
        f"SELECT pg_catalog.to_jsonb(l.*)::pg_catalog.text, pg_catalog.jsonb_build_array({key})::pg_catalog.text "
        f"FROM (SELECT {picked} FROM {table.sql.replace('%', '%%')} AS r "
        f"WHERE {conditions.text} ORDER BY {order}{limit}) AS l"
    )
    return statement, conditions.parameters


def pauses(seconds: float = 0.002) -> Callable[[], None]:
    """Return a function that lets other green threads run when a slice of time is over."""
    ends = time.monotonic() + seconds

    def pause() -> None:
        nonlocal ends
        if time.monotonic() > ends:
            green.sleep()
            ends = time.monotonic() + seconds

    return pause


def execute(connection: Any, sql: str, seconds: float) -> None:
    with translated_errors(seconds), connection.cursor() as cursor:
        cursor.execute(sql)
