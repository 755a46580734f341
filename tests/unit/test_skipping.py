"""What is left of a snapshot, in the ids of a stream's events."""

import random
import types
from typing import Any

from socketio_pg.log.skipping import Skipping
from socketio_pg.log.starts import Snapshot, parse_token, ranges_of

EPOCH = "0b5c9a0e-3c1c-4a73-9a4e-52b0f3c3a7d1"


def skipping(ids: dict[int, int]) -> Skipping:
    follower: Any = types.SimpleNamespace(epoch=EPOCH)
    history: Any = None
    made = Skipping(follower, history, ("a",), Snapshot(EPOCH, 0, tuple(ranges_of(ids.values()))))
    made.known, made._ids = True, ids
    return made


def test_what_is_left_after_each_position() -> None:
    chosen = random.Random(5)
    for _ in range(50):
        positions = sorted(chosen.sample(range(1, 60), chosen.randint(1, 30)))
        ids = dict(zip(positions, chosen.sample(range(1, 60), len(positions)), strict=True))
        made = skipping(dict(ids))
        asked = [chosen.randint(0, 60) for _ in range(5)] + list(range(60))
        for position in asked:
            left = [id for skipped, id in ids.items() if skipped > position]
            found = made.left(position)
            assert (None if found is None else found.ids) == (tuple(ranges_of(left)) or None)
            if found is not None:
                assert found.position == position
                assert parse_token(found.to_token()) == found


def test_all_of_a_large_snapshot_is_not_sorted_for_each_message() -> None:
    """A client chooses the ids: 100,000 of them took milliseconds for each message, without a pause."""
    made = skipping({number: number for number in range(1, 100_001)})
    made.left(1)
    rest = made._rest
    for position in range(2, 50_000):
        assert made.left(position) is not None
    assert made._rest is rest
