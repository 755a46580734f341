"""No row is overlooked, however transactions come and go."""

from hypothesis import given, settings
from hypothesis import strategies as st

from socketio_pg.outbox import LowWater

STEPS = st.lists(
    st.tuples(st.sampled_from(["begin", "insert", "commit", "rollback", "look", "partly"]), st.integers(0, 5))
)


@given(STEPS)
@settings(max_examples=500)
def test_every_committed_row_is_found(steps: list[tuple[str, int]]) -> None:
    low = LowWater()
    next_xid, next_id = 10, 1
    open_: dict[int, list[int]] = {}
    visible: set[int] = set()

    def look(most: int) -> int:
        nonlocal visible
        bound = low.bound
        found = sorted(id for id in visible if id > bound)
        moved = found[:most]
        visible -= set(moved)
        snapshot = f"{min(open_, default=next_xid)}:{next_xid}:{','.join(map(str, open_))}"
        low.looked(bound, snapshot, next_id - 1, all_moved=len(moved) == len(found) < most)
        return len(moved)

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
                next_id += 1
            else:
                rows = open_.pop(xid)
                visible |= set(rows) if step == "commit" else set()
    # One look finds out that a transaction has ended, the next one goes back for its rows.
    look(100)
    look(100)
    assert not visible


def test_moved_rows_are_not_looked_at_again() -> None:
    low = LowWater()
    low.looked(0, "10:10:", 100, all_moved=True)
    low.looked(low.bound, "10:12:10", 250, all_moved=True)
    assert low.bound == 100, "what was drawn when the look before was over"
    low.looked(low.bound, "10:15:10", 300, all_moved=True)
    assert low.bound == 250, "the open transaction holds nothing up"
    low.looked(low.bound, "15:15:", 300, all_moved=True)
    assert low.bound == 0, "it has ended: back to where its rows may be"
    low.looked(low.bound, "15:15:", 300, all_moved=True)
    assert low.bound == 300
