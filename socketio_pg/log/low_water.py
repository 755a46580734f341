"""Tracks the low-water mark of the outbox: the id from which the relay scans. Pure, no I/O.

Moved rows stay in the table and its index until vacuum removes them, which it cannot while an older transaction is
open. Scanning from the first id would therefore take longer and longer. But a new row below the ids seen so far can
only come from a transaction that was open when they were seen.
"""


class LowWater:
    """The ids after which the next rows can appear, as known from earlier scans of the outbox.

    A scan reads the rows after ``floor``, and those after ``open[xid]`` for each transaction that has ended in the
    snapshot of the same scan. If only the next scan found its rows, they would get positions after rows that
    were published later.

    Relies on publish(), which gives a transaction its number (xid) before it draws an id. For rows that were inserted
    in other ways, the caller scans from 0 from time to time.
    """

    def __init__(self) -> None:
        self.floor = 0
        #: Open transactions: xid → the id after which the transaction may have rows.
        self.open: dict[int, int] = {}
        #: Ids that were the newest, each with an xid greater than those of all transactions that drew ids up to it.
        self._drawn: list[tuple[int, int]] = []
        self._newest = 0

    def scanned(self, snapshot: str, own: int | None, issued: int, *, all_moved: bool) -> None:
        """Update the mark after a scan in ``snapshot`` (``pg_current_snapshot()``) that moved all rows it saw, or not.

        ``own`` is the xid of the scan's own transaction, if it has one; ``issued`` is the newest id drawn by any
        transaction, 0 at first. A snapshot does not list open transactions with an xid from its ``xmax`` on. So an id
        is passed only when ``xmax`` exceeds the xid of a scan that began after the id was drawn.
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
