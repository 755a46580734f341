"""Trims by rules on a real database, against a model: which messages stay, and what readers are told of the others."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg2
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from socketio_pg.core.channels import match_pattern
from socketio_pg.core.rules import Rule, Rules
from socketio_pg.log.history import _CHANNEL_PAGES
from socketio_pg.log.relay import _SESSION
from socketio_pg.log.trimming import Trimming, prefixes
from tests.support.log_database import LogDatabase, move_everything, prepare
from tests.support.postgres import in_thread

CHANNELS = ("a", "ab", "b:1", "b:2", "c%_\\")
PATTERNS = ("*", "a*", "a", "b:*", "*1", "c%_\\")
#: LOG_RETENTION. All ages are multiples of a minute, and limits are between them: the test's own time does not matter.
DEFAULT_AGE = 630.0
CHECKS = [HealthCheck.function_scoped_fixture]
#: An example takes too long to be made smaller.
PHASES = [Phase.explicit, Phase.generate]


@dataclass
class World:
    """The log, and every message that was ever in it: position → channel and time in seconds."""

    log: LogDatabase
    connection: Any
    #: Reads and publishes: new connections for that would take most of the time.
    session: Any
    rules: Rules = field(default_factory=lambda: Rules(Rule(max_age=DEFAULT_AGE)))
    max_messages: int | None = None
    published: dict[int, tuple[str, float]] = field(default_factory=dict)
    cleared: set[int] = field(default_factory=set)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.trimming = Trimming(self.rules, self.max_messages, 30.0)
        self.trimming.size, self.trimming.channels = 4, 2
        self.rules.replace({})

    @property
    def head(self) -> int:
        return len(self.published)

    def publish(self, channel: str, payload: str = "1") -> None:
        self.sql("SELECT socketio_pg.publish(%s, %s)", channel, payload)
        move_everything(self.connection, 1000)
        self.published[self.head + 1] = (channel, self.now)
        if payload == "null":
            self.cleared.add(self.head)

    def wait(self, minutes: int) -> None:
        self.now += minutes * 60
        self.sql("UPDATE socketio_pg.log SET logged_at = logged_at - make_interval(mins => %s)", minutes)

    def trim(self, steps: int = 60) -> None:
        def run() -> None:
            for _ in range(steps):
                self.trimming.next = self.trimming._next_pass = 0.0
                self.trimming.run(self.connection, 0)

        in_thread(run)

    def lead_again(self) -> None:
        """Another process leads, which knows nothing of what this one has found out."""
        self.trimming.reset()

    def sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        with self.session.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    def left(self) -> set[int]:
        return {position for (position,) in self.sql("SELECT position FROM socketio_pg.log")}

    def read(self, channel: str, after: int) -> tuple[int, list[int]]:
        """Return how far the channel is trimmed, and the positions of its messages after ``after``."""
        rows = self.sql(_CHANNEL_PAGES, [channel], [after], [self.head], 10_000, 10_000_000)
        return rows[0][0], [row[3] for row in rows if row[3] is not None]

    def own(self, channel: str) -> bool:
        return any(match_pattern(pattern, channel) for pattern in self.rules.own_retention())

    def expected(self, channel: str) -> set[int]:
        """Return the messages of a channel that its rule keeps now, if it did not keep fewer before."""
        rule = self.rules.of(channel)
        ours = sorted(position for position, (name, _) in self.published.items() if name == channel)
        kept = set()
        for index, position in enumerate(ours):
            age = self.now - self.published[position][1]
            newer = len(ours) - index - 1
            expired = age > (rule.max_age or DEFAULT_AGE)
            if self.own(channel) and rule.max_messages is not None:
                expired = expired or newer >= rule.max_messages
            retained = self.own(channel) and rule.retained and not newer and position not in self.cleared
            if not expired or age == 0 or retained or position == self.head:
                kept.add(position)
        return kept


@pytest.fixture(scope="module")
def world_log(postgres: Any) -> LogDatabase:
    return LogDatabase(postgres, "trimming")


@contextlib.contextmanager
def world_of(log: LogDatabase) -> Iterator[World]:
    log.sql(
        "TRUNCATE socketio_pg.log, socketio_pg.outbox, socketio_pg.channel_trim, socketio_pg.retention;"
        "UPDATE socketio_pg.head SET trimmed = 0; SELECT setval('socketio_pg.removed_position', 0),"
        "setval('socketio_pg.newest_position', 0)"
    )
    with contextlib.closing(log.connect()) as connection, contextlib.closing(log.connect()) as session:
        with connection.cursor() as cursor:
            cursor.execute(_SESSION)
        prepare(connection)
        yield World(log, connection, session)


@pytest.fixture
def world(world_log: LogDatabase) -> Iterator[World]:
    with world_of(world_log) as world:
        yield world


RULES = st.dictionaries(
    st.sampled_from(PATTERNS),
    st.builds(
        Rule,
        max_age=st.none() | st.sampled_from([90.0, 330.0, 1230.0]),
        max_messages=st.none() | st.integers(1, 3),
        retained=st.none() | st.booleans(),
    ),
    max_size=3,
)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.sampled_from(CHANNELS), st.sampled_from(["1", "null"])),
        st.tuples(st.just("publish"), st.sampled_from(CHANNELS), st.just("1")),
        st.tuples(st.just("wait"), st.integers(1, 12)),
        st.tuples(st.just("rules"), RULES),
        st.tuples(st.just("trim"), st.integers(1, 6)),
        st.tuples(st.just("lead"), st.just(0)),
    ),
    max_size=25,
)


@pytest.mark.majors
@given(rules=RULES, operations=OPERATIONS)
@settings(
    max_examples=settings().max_examples // 5,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
def test_readers_are_told_about_exactly_what_is_missing(
    world_log: LogDatabase, rules: dict[str, Rule], operations: list[Any]
) -> None:
    with world_of(world_log) as world:
        world.rules.replace(rules)
        for name, *arguments in operations:
            if name == "publish":
                world.publish(*arguments)
            elif name == "wait":
                world.wait(*arguments)
            elif name == "rules":
                world.rules.replace(*arguments)
            elif name == "lead":
                world.lead_again()
            else:
                world.trim(*arguments)
                check(world)
        before = world.left()
        world.trim()
        check(world)
        left = world.left()
        for channel in CHANNELS:
            ours = {position for position in left if world.published[position][0] == channel}
            assert ours == world.expected(channel) & before, (channel, world.rules.of(channel))


def check(world: World) -> None:
    """Check that each reader of each channel gets all messages after a position, or is told that it does not."""
    left = world.left()
    for channel in CHANNELS:
        ours = [position for position, (name, _) in world.published.items() if name == channel]
        for after in range(world.head + 1):
            trimmed, found = world.read(channel, after)
            wanted = [position for position in ours if position > max(after, trimmed)]
            assert found == wanted, f"{channel} after {after}, trimmed {trimmed}: no message is missing in silence"
            if world.own(channel) and after < trimmed:
                # Nobody is told that messages are missing of a channel that lacks none: unless they were trimmed
                # before the channel had its rule.
                [(since,)] = world.sql("SELECT min(since) FROM socketio_pg.retention WHERE %s LIKE expression", channel)
                lost = [position for position in ours if after < position <= trimmed and position not in left]
                assert lost or after < (world.head if since is None else since)


def test_a_long_rule_keeps_nothing_of_other_channels_and_a_short_one_leaves_them_complete(world: World) -> None:
    world.rules.replace({"long": Rule(max_age=10_000.0), "short": Rule(max_age=60.0)})
    world.trim()
    for _ in range(3):
        for channel in ("long", "short", "other"):
            world.publish(channel)
    world.wait(5)
    world.trim()
    assert world.left() == {1, 3, 4, 6, 7, 9}, "5 minutes"
    assert world.read("short", 0) == (8, [])
    assert world.read("other", 0) == (0, [3, 6, 9])
    world.wait(10)
    world.trim()
    assert world.left() == {1, 4, 7, 9}, "15 minutes; the newest message of the log stays"
    assert world.read("other", 0)[0] == world.log.sql("SELECT trimmed FROM socketio_pg.head")[0][0] == 7
    assert world.read("long", 0) == (0, [1, 4, 7]), "the mark of all others is not its own"
    world.rules.replace({})
    world.trim()
    assert world.left() == {9}, "without the rule, what is left of the channel goes"
    assert world.read("long", 0) == (7, [])


def test_many_messages_and_channels_are_trimmed_in_small_steps(world: World) -> None:
    world.rules.replace({"b:*": Rule(max_messages=2)})
    world.trimming.size, world.trimming.channels = 10, 3
    for number in range(12):
        world.log.publish(f"b:{number % 4}", *["1"] * 5)
        move_everything(world.connection, 1000)
    world.publish("z")
    world.wait(1)
    steps, counts = 0, [len(world.left())]
    while counts[-1] > 9:
        world.trim(1)
        counts.append(len(world.left()))
        steps += 1
        assert steps < 40
    assert max(before - after for before, after in itertools.pairwise(counts)) <= 10
    assert world.log.sql("SELECT count(*), max(position) FROM socketio_pg.channel_trim") == [(4, 58)]


def test_marks_are_forgotten_when_no_rule_can_need_them(world: World) -> None:
    world.rules.replace({"b:*": Rule(max_messages=1)})
    for _ in range(2):
        for number in range(5):
            world.publish(f"b:{number}")
    world.publish("z")
    world.wait(1)
    world.trim()
    assert world.log.sql("SELECT count(*) FROM socketio_pg.channel_trim") == [(5,)]
    world.wait(70)
    world.publish("z")
    world.wait(20)
    world.trim()
    assert world.left() == {12}
    world.log.sql("UPDATE socketio_pg.channel_trim SET trimmed_at = trimmed_at - interval '2 hours'")
    world.trimming._next_forget = 0.0
    world.trim()
    assert world.log.sql("SELECT count(*) FROM socketio_pg.channel_trim") == [(0,)]
    assert world.read("b:1", 6)[0] >= 7, "who was there before is still told"
    assert world.read("b:1", 11)[0] <= 11


def test_a_leader_of_another_term_trims_nothing(world: World) -> None:
    world.rules.replace({"a": Rule(max_messages=1)})
    world.trim()
    world.publish("z")
    world.wait(11)
    for _ in range(3):
        world.publish("a")
    world.publish("z")
    world.wait(1)
    world.log.sql("UPDATE socketio_pg.head SET term = 5")
    try:
        world.trim()
        assert world.left() == {1, 2, 3, 4, 5}
    finally:
        world.log.sql("UPDATE socketio_pg.head SET term = 0")
    world.lead_again()
    world.trim()
    assert world.left() == {4, 5}


def test_a_relay_of_the_former_version_keeps_nothing_back(world: World) -> None:
    """It trims all channels together. Readers of a channel with a rule must be told."""
    world.rules.replace({"long": Rule(max_age=10_000.0)})
    world.trim()
    for channel in ("long", "z", "long", "z"):
        world.publish(channel)
    world.log.sql(
        "SET socketio_pg.trimming = on; DELETE FROM socketio_pg.log WHERE position <= 2;"
        "UPDATE socketio_pg.head SET trimmed = 2"
    )
    assert world.read("long", 0) == (2, [3])
    assert world.read("long", 2) == (2, [3])


@pytest.mark.parametrize(
    ("row", "constraint"),
    [
        ("('')", "pattern_is_a_channel_with_stars"),
        ("('a b ')", "pattern_is_a_channel_with_stars"),
        ("(repeat('x', 64))", "pattern_is_a_channel_with_stars"),
        ("('a**')", "pattern_has_no_double_star"),
        ("('socketio_pg_x*')", "pattern_is_not_reserved"),
    ],
)
def test_invalid_patterns_are_refused(world_log: LogDatabase, row: str, constraint: str) -> None:
    with pytest.raises(psycopg2.errors.CheckViolation, match=constraint):
        world_log.sql(f"INSERT INTO socketio_pg.rule (pattern) VALUES {row}")


@pytest.mark.parametrize(
    ("column", "value", "constraint"),
    [
        ("max_age", "'0 s'", "max_age_from_1_second_to_10_years"),
        ("max_messages", "0", "max_messages_from_1_to_100000"),
        ("max_bytes", "0", "max_bytes_from_1_to_1000000000"),
        ("rate", "0", "rate_from_0_001_to_1000000"),
        ("rate", "'NaN'", "rate_from_0_001_to_1000000"),
        ("max_rate", "1001", "max_rate_from_0_001_to_1000"),
        ("conflate_key", "''", "conflate_key_has_1_to_256_characters"),
    ],
)
def test_invalid_columns_are_refused(world_log: LogDatabase, column: str, value: str, constraint: str) -> None:
    with pytest.raises(psycopg2.errors.CheckViolation, match=constraint):
        world_log.sql(f"INSERT INTO socketio_pg.rule (pattern, {column}) VALUES ('a', {value})")


def test_each_change_of_the_table_is_announced_through_the_log(log: LogDatabase) -> None:
    for statement in (
        "INSERT INTO socketio_pg.rule (pattern, rate) VALUES ('a', 1), ('b', 1)",
        "UPDATE socketio_pg.rule SET rate = 2",
        "DELETE FROM socketio_pg.rule WHERE pattern = 'a'",
        "TRUNCATE socketio_pg.rule",
    ):
        log.sql(statement)
    log.move()
    assert [channel for _, channel, _ in log.log()] == ["socketio_pg_rules"] * 4


def test_prefixes_cover_each_pattern_once() -> None:
    assert prefixes(["b:*", "b:1", "ab", "a*c", "a"]) == ["a", "b:"]
    assert prefixes(["x", "*y", "a"]) == [""]
