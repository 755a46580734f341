"""Where to begin to look in the outbox. Pure, no I/O.

Moved rows stay in the table and its index until vacuum may remove them, and as long as any transaction is open it may
not: looking from the first id on would take longer and longer. But a row below the ids that were seen can only come
from a transaction that was open then.
"""


class LowWater:
    """The id after which the next rows will be, by what each look at the outbox saw.

    A look is at rows after ``floor``, and after ``open[xid]`` for each transaction that has ended in the snapshot of
    that very look: found only by the next one, its rows would come after others that were published later.

    It relies on publish(), in which a transaction has its number before it draws an id. For rows that somebody has
    written otherwise, whoever uses this looks from 0 on now and then.
    """

    def __init__(self) -> None:
        self.floor = 0
        #: The transactions that were open: each may have rows after its id.
        self.open: dict[int, int] = {}
        #: Ids that were the newest, and the transaction number that is greater than those of all who had drawn them.
        self._drawn: list[tuple[int, int]] = []
        self._newest = 0

    def looked(self, snapshot: str, own: int | None, issued: int, *, all_moved: bool) -> None:
        """A look in ``snapshot`` (``pg_current_snapshot()``): were all rows moved that it saw?

        ``own`` is the number of the look's own transaction, if it has one; ``issued`` the newest id that anybody had
        drawn, 0 at first. A snapshot does not list the open transactions with numbers from its ``xmax`` on. So an id
        counts as passed when ``xmax`` has gone past the number of a look of ours that began after it had been drawn.
        """
        if all_moved:
            _, xmax, xip = snapshot.split(":")
            still_open = {int(xid) for xid in xip.split(",") if xid}
            self.open = {xid: low for xid, low in self.open.items() if xid in still_open}
            passed = [newest for newest, later in self._drawn if later < int(xmax)]
            if passed:
                for xid in still_open:
                    self.open.setdefault(xid, self.floor)
                self.floor = passed[-1]
                del self._drawn[: len(passed)]
        if own is not None:
            self._drawn.append((self._newest, own))
            self._newest = issued
