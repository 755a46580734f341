"""When the log's epoch ends: what is found in the database, compared with the evidence of earlier batches."""

import dataclasses

import pytest

from socketio_pg.log.epochs import Cluster, Found, Past, changed

HERE = Cluster(1, 1)
FOUND = Found(
    complete=True, system_identifier=1, timeline=1, unsigned=False, same_tables=True,
    position=10, newest_position=10, newest_id=12, issued=15,
)  # fmt: skip


@pytest.mark.parametrize("past", [None, Past(10, 12, 15), Past(10, 12, 14)])
@pytest.mark.parametrize(
    "same",
    [
        {},
        {"newest_position": 8, "newest_id": 9},  # a crash of the database has lost the newest evidence
        {"system_identifier": None, "timeline": None, "unsigned": True},  # the first leader
    ],
)
def test_epoch_goes_on(past: Past | None, same: dict[str, object]) -> None:
    assert changed(dataclasses.replace(FOUND, **same), HERE, past) is None  # type: ignore[arg-type]
    assert changed(FOUND, Cluster(None, None), past) is None, "PostgreSQL does not tell"


@pytest.mark.parametrize("past", [None, Past(10, 12, 15)])
@pytest.mark.parametrize(
    ("found", "label", "text"),
    [
        ({"system_identifier": 2}, "database", "restored from a copy"),
        ({"timeline": 2}, "database", "promoted"),
        ({"same_tables": False}, "tables", "restored from a dump"),
        ({"position": 9}, "log", "9 follows 10"),
        ({"position": 0}, "log", "0 follows 10"),
        ({"issued": 11}, "outbox", "to 11"),
    ],
)
def test_epoch_ends(past: Past | None, found: dict[str, object], label: str, text: str) -> None:
    reason = changed(dataclasses.replace(FOUND, **found), HERE, past)  # type: ignore[arg-type]
    assert reason is not None
    assert reason[0] == label
    assert text in reason[1]


def test_leader_knows_more_than_the_database() -> None:
    """A dump has restored the evidence as well, so that it agrees with the older log."""
    older = dataclasses.replace(FOUND, position=5, newest_position=5, newest_id=6, issued=6)
    assert changed(older, HERE, None) is None
    assert changed(older, HERE, Past(10, 12, 15)) is not None
