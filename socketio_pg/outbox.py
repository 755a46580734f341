"""Where to begin to look in the outbox. Pure, no I/O.

Moved rows stay in the table and its index until vacuum may remove them, and as long as any transaction is open it may
not: looking from the first id on would take longer and longer. But a row below the ids that were seen can only come
from a transaction that was open then.
"""


class LowWater:
    """The id after which the next rows will be, by what each look at the outbox saw.

    One thing it cannot know: a transaction that has drawn an id and no transaction number yet. That takes microseconds;
    whoever uses this looks from 0 on now and then.
    """

    def __init__(self) -> None:
        self._floor = 0
        self._issued = 0
        #: The transactions that were open: each may have rows after its id.
        self._open: dict[int, int] = {}
        self._ended: set[int] = set()

    @property
    def bound(self) -> int:
        """Look at rows with greater ids than this."""
        return min([self._floor, *(self._open[xid] for xid in self._ended)])

    def looked(self, bound: int, snapshot: str, issued: int, *, all_moved: bool) -> None:
        """A look in ``snapshot`` (``pg_current_snapshot()``) at rows after ``bound``; were all that it saw moved?

        ``issued`` is the newest id that anybody had drawn, read after the snapshot was taken.
        """
        _, xmax, xip = snapshot.split(":")
        still_open = {int(xid) for xid in xip.split(",") if xid}
        self._ended = {xid for xid in self._open if xid not in still_open and xid < int(xmax)}
        if not all_moved:
            return
        for xid in list(self._ended):
            if bound <= self._open[xid]:  # its rows were among those
                self._ended.discard(xid)
                del self._open[xid]
        for xid in still_open:
            self._open.setdefault(xid, self._floor)
        # What was drawn before this look began. What was drawn during it, the next one accounts for.
        self._floor = max(self._floor, self._issued)
        self._issued = issued
