"""Selects changed rows as each client that is subscribed, where row-level security decides what it may see.

Many clients in one query, with `socketio_pg.live_rows()`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson

from socketio_pg.core import metrics
from socketio_pg.core.channels import quote_literal
from socketio_pg.core.errors import DatabaseTimeoutError, DatabaseUnavailableError, ForbiddenError, SocketIOPGError
from socketio_pg.postgres.database import Database, fetch_as_is
from socketio_pg.tables.connections import Connections
from socketio_pg.tables.definition import Definition
from socketio_pg.tables.reading import SETTINGS, Identity, client_error

_CHECK = (
    f"SELECT client, key, image FROM socketio_pg.live_rows({'%s::pg_catalog.text[], ' * 3}%s::pg_catalog.jsonb, %s)"
)


@dataclass(frozen=True, slots=True)
class Seer:
    """A client, or several with equal claims, and the columns that it sees."""

    identity: Identity
    columns: tuple[str, ...]


#: The rows that a client sees, as JSON texts, by the number of their key; or why they could not be selected.
Seen: TypeAlias = Mapping[int, str] | SocketIOPGError


class RowChecks:
    """Checks rows in ``database``. ``timeout``: seconds for one client with the changes of a batch."""

    #: The fraction of the timeout after which no further client is begun with; the rest is another query.
    budget = 0.5
    #: Clients in one query.
    most = 100

    def __init__(self, database: Database, timeout: float) -> None:
        # Slow policies of one table delay those of one other table at most.
        self._connections = Connections(database, 2)
        self._timeout = timeout

    def start(self) -> None:
        self._connections.start()

    def stop(self) -> None:
        self._connections.stop()

    def check(self, table: Definition, seers: Sequence[Seer], keys: Sequence[Mapping[str, Any]]) -> dict[Seer, Seen]:
        """Return which of the rows with these ``keys`` (of :func:`exact.loads`) each of ``seers`` sees now. Waits.

        Raises :class:`DatabaseUnavailableError` or another error if that says nothing about a single client.
        """
        found: dict[Seer, Seen] = {}
        waiting = list(seers)
        together = self.most
        while waiting:
            batch = waiting[:together]
            try:
                answered = self._check(table, batch, keys)
            except DatabaseTimeoutError as error:
                if error.sqlstate is None:
                    raise  # PostgreSQL does not respond at all
                if len(batch) > 1:
                    together = 1  # one of them is slow
                    continue
                answered = {batch[0]: DatabaseUnavailableError("row-level security of this table took too long")}
            found |= answered
            waiting = [seer for seer in waiting if seer not in found]
        return found

    def _check(self, table: Definition, seers: Sequence[Seer], keys: Sequence[Mapping[str, Any]]) -> dict[Seer, Seen]:
        texts = [statement(table, seer.columns) for seer in seers]
        parameters = (
            texts,
            [seer.identity.role for seer in seers],
            [seer.identity.claims for seer in seers],
            orjson.dumps(keys).decode(),
            self._timeout * self.budget,
        )
        limit = int(self._timeout * 1000)
        begin = f"BEGIN READ ONLY; SET LOCAL statement_timeout = {limit}; {SETTINGS}"
        with metrics.live_table_check_seconds.time():
            rows = self._connections.run(
                lambda connection: fetch_as_is(
                    connection, f"{begin}; {_CHECK}", *parameters, seconds=self._timeout + 1.0
                ),
                self._timeout,
            )
        metrics.live_table_checked_rows.inc(len(seers) * len(keys))
        found: dict[Seer, Seen] = {}
        rows_of: dict[int, dict[int, str]] = {}
        for client, key, text in rows:
            seer = seers[client - 1]
            if key > 0:
                rows_of.setdefault(client, {})[key - 1] = text
            elif key == 0:
                found[seer] = self._failure(seer, text)
            else:
                found[seer] = rows_of.get(client, {})
        if not found:
            raise DatabaseUnavailableError("rows could not be checked")
        return found

    @staticmethod
    def _failure(seer: Seer, text: str) -> SocketIOPGError:
        sqlstate, _, message = text.partition(" ")
        if sqlstate in ("42P01", "42703"):
            return DatabaseUnavailableError("the table has just changed")
        if sqlstate in ("22023", "42501"):
            return ForbiddenError("the table cannot be read with your role")
        return client_error(seer.identity.role, sqlstate, message)


def statement(table: Definition, columns: Sequence[str]) -> str:
    """Return the statement that selects the rows of the keys ``$1``, a list of objects, with some of the columns."""
    picked = ", ".join(f"r.{column.sql}" for column in table.named(columns))
    values = {
        column: f"(k.key OPERATOR(pg_catalog.->>) {quote_literal(column.name)})::{column.type}"
        for column in table.named(table.key)
    }
    same = " AND ".join(f"r.{column.sql} OPERATOR(pg_catalog.=) {value}" for column, value in values.items())
    return (
        "SELECT k.place, pg_catalog.to_jsonb(l.*) AS image "
        "FROM pg_catalog.jsonb_array_elements($1) WITH ORDINALITY AS k (key, place) "
        f"CROSS JOIN LATERAL (SELECT {picked} FROM {table.sql} AS r WHERE {same}) AS l"
    )
