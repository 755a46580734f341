"""Removes the ids of publications after five minutes: see claim() in postgres/sql. Runs on the leader's connection."""

import time
from typing import Any

from socketio_pg.postgres.database import fetch_as_is

# Not the rows that a publisher is using again at the moment: the leader waits for nobody. It returns the number of
# rows, and where to begin the next time.
_REMOVE = """
WITH gone AS (
    DELETE FROM socketio_pg.published WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM socketio_pg.published
        WHERE published_at >= %s::timestamptz AND published_at < now() - interval '5 minutes'
        ORDER BY published_at LIMIT %s FOR UPDATE SKIP LOCKED))
    RETURNING published_at
)
SELECT count(*), CASE WHEN count(*) = %s THEN max(published_at) ELSE now() - interval '5 minutes' END::text FROM gone
"""
_BEGINNING = "-infinity"


class OldIds:
    """Removes a few rows at a time.

    While a transaction stays open, removed rows remain in the index. So each scan begins where the last one ended; rows
    of transactions that commit late are found by a scan from the beginning, now and then.
    """

    #: Seconds between two scans, and after one that has found as many rows as one statement removes.
    interval, pause = 10.0, 0.05
    #: Maximum rows that one statement removes.
    size = 1000
    #: Seconds between scans from the beginning.
    full_interval = 300.0

    def __init__(self) -> None:
        self._begin = _BEGINNING
        self._next = self._next_full = 0.0

    def remove(self, connection: Any, seconds: float) -> None:
        """Remove some old ids, if it is time. Raises as :func:`fetch_as_is`."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self.interval
        if now >= self._next_full:
            self._next_full = now + self.full_interval
            self._begin = _BEGINNING
        [(count, self._begin)] = fetch_as_is(connection, _REMOVE, self._begin, self.size, self.size, seconds=seconds)
        if count == self.size:
            self._next = now + self.pause
