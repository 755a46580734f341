"""The filters' LIKE against PostgreSQL's."""

import random

from socketio_pg.pubsub.like import Like
from tests.support.postgres import Cluster

PAIRS = 20_000
#: A lone backslash at the end is an error in PostgreSQL; the filters take it for a character.
ENDS = ("", "\\\\", "\\%", "\\_", "%", "_", "a")


def test_like_agrees_with_postgresql(newest_pg: Cluster) -> None:
    chance = random.Random(15)

    def text(alphabet: str, most: int) -> str:
        return "".join(chance.choices(alphabet, k=chance.randint(0, most)))

    def pattern() -> str:
        parts = chance.choices(
            ("%", "_", "a", "b", "é", "😀", "\n", "\\%", "\\_", "\\\\", "\\a"), k=chance.randint(0, 8)
        )
        return "".join(parts) + chance.choice(ENDS)

    pairs = [(pattern(), text("ab%_\\é😀\n", 10)) for _ in range(PAIRS)]
    # Short texts of two characters match more often.
    pairs += [(text("a%_", 8), text("ab", 12)) for _ in range(PAIRS)]
    rows = newest_pg.sql(
        "SELECT value LIKE pattern FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY AS pair(pattern, value, n) "
        "ORDER BY n",
        [pattern for pattern, _ in pairs], [value for _, value in pairs],
    )  # fmt: skip
    expected = [matches for (matches,) in rows]
    assert 0.1 < sum(expected) / len(expected) < 0.9
    differing = [
        (pattern, value, wanted)
        for (pattern, value), wanted in zip(pairs, expected, strict=True)
        if Like(pattern)(value) is not wanted
    ]
    assert differing == []
