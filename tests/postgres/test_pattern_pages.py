"""Pages of patterns from a real log: complete and in order, whichever way they are read, and by which index."""

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from socketio_pg.core.patterns import matches
from socketio_pg.log import pattern_pages
from socketio_pg.log.pattern_pages import PatternPages
from tests.support.log_database import LogDatabase

pytestmark = pytest.mark.majors

PATTERNS = ["*", "o*", "o:*", "o:1*", "*1", "o:*1", "o*:*2", "rare*", "none*", "\\%*", "s*"]


def fill(log: LogDatabase, channels: list[str]) -> None:
    log.sql(
        "INSERT INTO socketio_pg.log (position, channel, payload, size, published_at)"
        " SELECT n, channel, to_jsonb(n), 1 + n %% 7, now() FROM unnest(%s::text[]) WITH ORDINALITY AS c(channel, n)",
        channels,
    )


Fetch = Callable[[str, dict[str, Any]], list[tuple[Any, ...]]]


@pytest.fixture
def fetch(log: LogDatabase) -> Iterator[Fetch]:
    with contextlib.closing(log.connect()) as connection, connection.cursor() as cursor:

        def run(sql: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
            cursor.execute(sql, values)
            return list(cursor.fetchall())

        yield run


def read_all(pages: PatternPages, pattern: str, after: int, upto: int, most: int, size: int) -> list[int]:
    found: list[int] = []
    while after < upto:
        rows, end = pages.read(pattern, after, upto)
        page = [row for row in rows if row[2] is not None]
        assert all(after < row[2] <= end for row in page)
        assert len(page) <= most
        if len(page) == most or sum(row[8] for row in page) >= size:
            end = page[-1][2]  # as in History
        found += [row[2] for row in page]
        assert end > after
        after = end
    return found


def test_pages_have_all_messages_of_a_pattern(log: LogDatabase, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    """With small limits, so that every way of reading is used."""
    for name, value in {"DENSE": 20, "WINDOW": 50, "MAX_CHANNELS": 5, "MAX_WINDOWS": 1000}.items():
        monkeypatch.setattr(pattern_pages, name, value)
    generator = random.Random(20)
    names = [f"o:{n}" for n in range(12)] + ["other", "o", "rare:1", "\\%x", "%x", "socketio_pg_permissions"]
    weights = [30] * 12 + [20, 10, 1, 2, 2, 3]
    channels = generator.choices(names, weights, k=1500)
    fill(log, channels)
    for pattern in PATTERNS:
        expected = [n for n, channel in enumerate(channels, 1) if matches(pattern, channel)]
        for most, size in ((7, 10_000), (500, 30)):
            pages = PatternPages(fetch, most, size)
            after, upto = generator.randrange(0, 800), generator.randrange(900, 1500)
            wanted = [n for n in expected if after < n <= upto]
            assert read_all(pages, pattern, after, upto, most, size) == wanted, pattern
            assert read_all(pages, pattern, 0, 1500, most, size) == expected, pattern
        for count in (0, 1, 5, 400, 2000):
            upto = generator.randrange(900, 1500)
            newest = [n for n in expected if n <= upto][-count:] if count else []
            after = PatternPages(fetch, 7, 100).before_newest(pattern, count, upto)
            assert [n for n in expected if after < n <= upto] == newest, (pattern, count)
    log.sql("UPDATE socketio_pg.head SET trimmed = 700")
    log.sql("DELETE FROM socketio_pg.log WHERE position <= 700")
    rows, _ = PatternPages(fetch, 7, 100).read("o:*", 0, 1500)
    assert {row[0] for row in rows} == {700}, "the caller learns what was trimmed"
    assert PatternPages(fetch, 7, 100).before_newest("rare*", 100, 1500) == 700


def test_pages_are_read_by_index(log: LogDatabase, fetch: Fetch) -> None:
    fill(log, [f"o:{n % 1000}" if n % 100 else f"rare:{n % 300}" for n in range(50_000)])
    log.sql("ANALYZE socketio_pg.log")
    values: dict[str, Any] = {
        "like": "rare:%", "prefix": "rare:", "channels": 1000, "after": 0, "upto": 50_000, "most": 500, "bytes": 64_000
    }  # fmt: skip
    for sql in (pattern_pages._SPARSE, pattern_pages._NEWEST_SPARSE):
        plan = "\n".join(row[0] for row in fetch("EXPLAIN " + sql, values))
        assert "log_channel_position" in plan, plan
        assert "Seq Scan on log" not in plan, plan
    for sql in (pattern_pages._WINDOW, pattern_pages._NEWEST_IN_WINDOW):
        plan = "\n".join(row[0] for row in fetch("EXPLAIN " + sql, values | {"upto": 5000}))
        assert "log_pkey" in plan, plan
