"""Reports to clients whether the database is reachable: in `server_hello`, and with the event `health` on a change.

For operators there is `/readyz`, with the reasons: clients get none.
"""

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from socketio_pg.core import green


class Reachability:
    """Decides from single observations whether the database is reachable. Pure, no I/O; all times are monotonic.

    A short loss, such as a LISTEN connection that reconnects, is not reported, nor a short return.
    """

    #: Seconds for which the database is unreachable before it is reported. Short returns do not begin them anew.
    down_after = 3.0
    #: Seconds for which it is reachable again, without a pause, before that is reported.
    up_after = 2.0

    def __init__(self) -> None:
        #: Whether the database is reachable, as reported; None before the first decision. ``since``: since when.
        self.reachable: bool | None = None
        self.since = 0.0
        self._up_since: float | None = None
        self._down_since: float | None = None

    def observe(self, reachable: bool, now: float) -> bool:
        """Note an observation. Return True when :attr:`reachable` has changed."""
        if not reachable:
            self._up_since = None
            if self._down_since is None:
                self._down_since = now
            return now - self._down_since >= self.down_after and self._change(False, self._down_since)
        if self._up_since is None:
            self._up_since = now
        if self.reachable is not None and now - self._up_since < self.up_after:
            return False
        self._down_since = None
        return self._change(True, self._up_since)

    def _change(self, reachable: bool, since: float) -> bool:
        if reachable is self.reachable:
            return False
        self.reachable, self.since = reachable, since
        return True


class Health:
    """Observes the database, and calls ``emit(body)`` with the body of the event `health` when the result changes.

    ``is_reachable`` must not wait.
    """

    #: Seconds between two observations.
    interval = 0.25

    def __init__(self, is_reachable: Callable[[], bool], emit: Callable[[dict[str, Any]], None]) -> None:
        self._is_reachable = is_reachable
        self._emit = emit
        self._reachability = Reachability()
        self._worker = green.Worker()
        self._body: dict[str, Any] | None = None
        #: A client has connected before the first decision.
        self._awaited = False

    def start(self) -> None:
        """Start the green thread."""
        self._worker.start(self._run)

    def stop(self) -> None:
        """Stop the green thread: a server that shuts down does not report its own connections as lost."""
        self._worker.stop()

    def current(self) -> dict[str, Any] | None:
        """Return the body for a client that connects; None in the first moments, while it is not decided."""
        self._look()
        self._awaited = self._awaited or self._body is None
        return self._body

    def _run(self) -> None:
        while True:
            self._look()
            green.sleep(self.interval)

    def _look(self) -> None:
        known, now = self._reachability, time.monotonic()
        first = known.reachable is None
        if not known.observe(self._is_reachable(), now):
            return
        since = datetime.now(timezone.utc) - timedelta(seconds=now - known.since)
        word = "reachable" if known.reachable else "unreachable"
        self._body = {"database": word, "since": since.isoformat(timespec="seconds")}
        if self._awaited or not first:
            green.run_soon(self._emit, self._body)
