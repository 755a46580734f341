"""Whether a program may publish through the log on a connection of its own: asked once a minute for each database."""

import logging
import time
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from socketio_pg.core import schema_trust
from socketio_pg.core.channels import quote_literal

logger = logging.getLogger("socketio_pg.client")


class LogChoice:
    """Remembers for which databases there is a log: installed, of a trusted owner, and with the right to publish."""

    #: Seconds for which the answers yes and no are remembered, and the maximum number of databases.
    yes_seconds, no_seconds = 60.0, 5.0
    most = 1000

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[bool, float]] = {}

    def has_log(self, key: Hashable, schema_owner: str | None, fetch: Callable[[str], Sequence[Sequence[Any]]]) -> bool:
        """Return whether messages go through the log.

        ``key`` names the database and the role. ``fetch`` runs a query that reads the system catalogs only: it calls
        nothing that the schema's owner has written, and succeeds in any transaction that has not failed before.
        """
        found = self.known(key, schema_owner)
        return self.learn(key, schema_owner, fetch(self.question(schema_owner))) if found is None else found

    def known(self, key: Hashable, schema_owner: str | None) -> bool | None:
        """Return the remembered answer; None if :meth:`question` must be asked."""
        found, until = self._known.get((key, schema_owner), (False, 0.0))
        return found if time.monotonic() < until else None

    def question(self, schema_owner: str | None) -> str:
        """Return the query, whose rows are for :meth:`learn`."""
        return schema_trust.usable(None if schema_owner is None else quote_literal(schema_owner))

    def learn(self, key: Hashable, schema_owner: str | None, rows: Sequence[Sequence[Any]]) -> bool:
        """Remember and return the answer."""
        key = (key, schema_owner)
        [(present, problems, usable)] = rows
        if problems and key not in self._known:
            logger.warning(
                "the log is not used: the schema socketio_pg is not trusted: %s; messages are sent with NOTIFY. "
                "Pass schema_owner, or durable=True to use the log of whoever owns it",
                ", ".join(problems),
            )
        found = bool(present and usable and not problems)
        if len(self._known) >= self.most:
            self._known.clear()
        self._known[key] = (found, time.monotonic() + (self.yes_seconds if found else self.no_seconds))
        return found

    def forget(self) -> None:
        """Forget all answers."""
        self._known.clear()


#: That of this process.
LOG_CHOICE = LogChoice()


def database_key(driver_connection: Any) -> Hashable:
    """Return what names the database and the role of a connection of psycopg2 or psycopg 3, or else the connection.

    Not by its `id()`, which a later connection to another database may have.
    """
    info = getattr(driver_connection, "info", None)
    names = [getattr(info, name, None) for name in ("host", "port", "dbname", "user")]
    if None not in names:
        return tuple(names)
    try:
        return weakref.ref(driver_connection)
    except TypeError:
        return object()  # asked each time
