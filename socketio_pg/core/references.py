"""References: short random ids that clients see in place of details, which the log has under the same id.

Details are texts of PostgreSQL and other systems: they may have host names, paths, names of roles and tables.
"""

import logging
import secrets
import time
from collections import OrderedDict

logger = logging.getLogger("socketio_pg.references")


class References:
    """The references of one process. The same detail keeps its reference, and is logged again after :attr:`again`.

    Clients can cause errors, so the log lines are bounded: beyond :attr:`per_second` new details share a reference.
    """

    #: Seconds after which a detail that recurs is logged again: the log may have been rotated.
    again = 600.0
    #: Maximum number of references that are kept, of new ones per second, and of characters of a detail.
    MAX_KEPT = 1_000
    per_second = 5
    MAX_CHARACTERS = 2_000

    def __init__(self) -> None:
        #: Detail → its reference, and the time when it was logged (monotonic), the least recently used first.
        self._known: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._second = 0.0
        self._new = 0
        self._shared = ""

    def of(self, detail: str) -> str:
        """Return the reference of ``detail``, after logging it, unless that was done recently."""
        now = time.monotonic()
        detail = detail[: self.MAX_CHARACTERS]
        known = self._known.get(detail)
        if known is not None:
            self._known.move_to_end(detail)
            reference, logged = known
            if now - logged > self.again:
                self._known[detail] = (reference, now)
                logger.warning("reference %s: %s", reference, detail)
            return reference
        if now - self._second >= 1.0:
            self._second, self._new = now, 0
        self._new += 1
        if self._new > self.per_second:
            if self._new == self.per_second + 1:
                self._shared = secrets.token_hex(4)
                logger.warning("reference %s: many different errors; one of them: %s", self._shared, detail)
            return self._shared
        reference = secrets.token_hex(4)
        self._known[detail] = (reference, now)
        if len(self._known) > self.MAX_KEPT:
            self._known.popitem(last=False)
        logger.warning("reference %s: %s", reference, detail)
        return reference


_references = References()


def public_text(message: str, detail: str | None) -> str:
    """Return ``message`` for a client: with a reference to ``detail``, which goes to the log; None: there is none."""
    return message if detail is None else f"{message} (reference {_references.of(detail)})"
