"""Keeps the rules for channels of this process up to date: those of the table ``socketio_pg.rule``.

A trigger on the table announces changes through the log. Anything else that may have changed them, such as a gap of the
log or a new schema, is only a reason to read them again, and so is a minute that has passed.
"""

import logging
import time
from collections.abc import Sequence

from socketio_pg.core import green
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.errors import DatabaseError, DatabaseUnavailableError, LogNotInstalledError
from socketio_pg.core.rules import Rule, Rules
from socketio_pg.log.history import History
from socketio_pg.log.rule_rows import parse_rows

logger = logging.getLogger("socketio_pg.rules")


class RuleReader:
    """Reads the table into ``rules``, on the connection of ``history``."""

    #: Seconds between two reads without a reason; and the fewest between any two.
    interval = 60.0
    pause = 0.2
    #: Seconds before the first retry when the table cannot be read; doubles up to the second value.
    backoff = (0.1, 5.0)

    def __init__(self, rules: Rules, history: History) -> None:
        self._rules = rules
        self._history = history
        self._worker = green.Worker()
        self._wanted = green.Event()
        self._known = green.Event()
        #: The problems that were logged last.
        self._problems: list[str] = []

    def start(self) -> None:
        """Start the green thread; idempotent."""
        if not self._worker.running:
            self._worker.start(self._run)

    def stop(self) -> None:
        """Stop the green thread."""
        self._worker.stop()

    def look(self) -> None:
        """Read the table soon."""
        self._wanted.send()

    def hear(self, texts: Sequence[str]) -> None:
        """Take announcements of the trigger."""
        self.look()

    def wait_known(self, seconds: float) -> None:
        """Return once the rules have been read. Raises :class:`DatabaseUnavailableError` after ``seconds``."""
        if self._rules.known:
            return
        try:
            self._known.wait(seconds)
        except green.TimedOut:
            problem = self._problems[0] if self._problems else None
            raise DatabaseUnavailableError(
                "the rules for channels cannot be read at the moment", detail=problem
            ) from None

    # -- the green thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff = Backoff(*self.backoff)
        while True:
            self._wanted = green.Event()
            began = time.monotonic()
            try:
                self._replace(self._read())
            except LogNotInstalledError:
                self._replace({})
            except DatabaseError as error:
                if error.sqlstate != "42501":  # insufficient_privilege
                    self._warn([f"the rules for channels cannot be read: {error}"])
                    green.sleep(backoff.next())
                    continue
                self._warn([f"the rules for channels are not used: {error}"])
                self._replace({})
            except Exception:
                logger.exception("reading the rules for channels failed; retrying")
                green.sleep(self.backoff[1])
                continue
            backoff.reset()
            self._wait(began)

    def _wait(self, began: float) -> None:
        """Wait for a reason to read again, for at most :attr:`interval`, and at least :attr:`pause`."""
        try:
            self._wanted.wait(self.interval)
        except green.TimedOut:
            return
        green.sleep(max(0.0, began + self.pause - time.monotonic()))

    def _read(self) -> dict[str, Rule]:
        found, problems = parse_rows(self._history.rules())
        self._warn([f"a rule for channels is not used: {problem}" for problem in problems])
        return found

    def _replace(self, table: dict[str, Rule]) -> None:
        known = self._rules.known
        if self._rules.replace(table) and known:
            logger.info("the rules for channels have changed: %d of the table", len(table))
        self._known.send()

    def _warn(self, problems: list[str]) -> None:
        if problems != self._problems:
            for problem in problems:
                logger.warning("%s", problem)
        self._problems = problems
