"""The low-water mark of the outbox: no committed row is missed, in any order of transactions."""

from hypothesis import given, settings
from hypothesis import strategies as st

from socketio_pg.log.low_water import LowWater

STEPS = st.lists(
    st.tuples(st.sampled_from(["begin", "insert", "commit", "rollback", "look", "partly"]), st.integers(0, 5))
)


@given(STEPS)
@settings(max_examples=5 * settings().max_examples)
def test_every_committed_row_is_moved_in_order(steps: list[tuple[str, int]]) -> None:
    low = LowWater()
    next_xid, next_id = 10, 1
    open_: dict[int, list[int]] = {}
    visible: set[int] = set()
    moved: list[int] = []
    #: id → rows that were already committed when it was published, and must be moved before it.
    before: dict[int, set[int]] = {}

    newest_ended = 9

    def look(most: int) -> None:
        nonlocal visible, next_xid, newest_ended
        ended = [after for xid, after in low.open.items() if xid not in open_]
        found = sorted(id for id in visible if id > min([low.floor, *ended]))
        # As in PostgreSQL: xmax is the newest ended xid + 1, and open transactions from xmax on are not listed.
        xmax = newest_ended + 1
        snapshot = f"{min(open_, default=xmax)}:{xmax}:{','.join(str(xid) for xid in open_ if xid < xmax)}"
        own = None
        if found:
            own, next_xid = next_xid, next_xid + 1
            newest_ended = max(newest_ended, own)
        visible -= set(found[:most])
        moved.extend(found[:most])
        low.scanned(snapshot, own, next_id - 1, all_moved=len(found) < most)

    for step, which in steps:
        xids = list(open_)
        if step == "begin":
            open_[next_xid] = []
            next_xid += 1
        elif step == "look":
            look(100)
        elif step == "partly":
            look(1)
        elif xids:
            xid = xids[which % len(xids)]
            if step == "insert":
                open_[xid].append(next_id)
                before[next_id] = visible | set(moved)
                next_id += 1
            else:
                rows = open_.pop(xid)
                newest_ended = max(newest_ended, xid)
                visible |= set(rows) if step == "commit" else set()
    look(100)
    assert not visible
    place = {id: index for index, id in enumerate(moved)}
    for id, earlier in before.items():
        if id in place:
            assert all(place[other] < place[id] for other in earlier)


def test_moved_rows_are_not_read_again() -> None:
    low = LowWater()
    low.scanned("10:10:", 10, 100, all_moved=True)
    low.scanned("11:11:", 12, 250, all_moved=True)
    assert low.floor == 0, "transactions from xid 11 on may have one of the first 100 ids"
    low.scanned("11:13:11", 14, 300, all_moved=True)
    assert (low.floor, low.open) == (100, {11: 0}), "the open transaction does not hold the floor back"
    low.scanned("11:15:11", 16, 400, all_moved=True)
    assert (low.floor, low.open) == (250, {11: 0})
    low.scanned("11:17:11", None, 400, all_moved=True)
    assert (low.floor, low.open) == (300, {11: 0})
    low.scanned("17:17:", None, 400, all_moved=False)
    assert low.open == {11: 0}, "its rows may not have been moved"
    low.scanned("17:17:", None, 400, all_moved=True)
    assert (low.floor, low.open) == (300, {})
