"""PubSub's subscriptions with since, history and filter on a real log, in this process."""

import contextlib
from collections.abc import Iterator
from datetime import timedelta, timezone
from typing import Any

import pytest

from socketio_pg import PubSub
from socketio_pg.core import green
from socketio_pg.core.channels import LOG_CHANNEL
from socketio_pg.core.errors import InvalidChannelError, InvalidRequestError, LogNotInstalledError
from socketio_pg.core.messages import Position
from socketio_pg.log.starts import LogPosition
from socketio_pg.postgres.schema import INSTALLED, REMOVED
from tests.support.log_database import LogDatabase
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster, own_listener


@pytest.fixture
def pubsub(shared_log: LogDatabase) -> Iterator[PubSub]:
    """A PubSub on the database `shared_log`, which has the log."""
    made = PubSub(shared_log.url)
    yield made
    made.disconnect()


@pytest.fixture
def queue() -> Any:
    return green.Queue()


def publish(log: LogDatabase, channel: str, *payloads: object) -> None:
    """Publish through the log, and number the messages as the relay does."""
    log.publish(channel, *map(str, payloads))
    while log.move():
        pass


def take(queue: Any, count: int) -> list[Any]:
    """Return the payloads of the next ``count`` messages."""
    return [queue.get(timeout=PATIENCE)["payload"] for _ in range(count)]


def test_since_replays_before_live_messages(pubsub: PubSub, shared_log: LogDatabase, channel: str, queue: Any) -> None:
    publish(shared_log, channel, 1)
    since = pubsub.position()
    assert since is not None
    publish(shared_log, channel, 2, 3)
    publish(shared_log, f"{channel}-other", 0)
    subscription = pubsub.subscribe(channel, queue, since=since)
    assert subscription.position == since
    publish(shared_log, channel, 4)
    first, *_, last = [queue.get(timeout=PATIENCE) for _ in range(3)]
    assert (first["payload"], first["replayed"], first["epoch"]) == (2, True, since["epoch"])
    assert first["position"] == since["position"] + 1
    assert first["published_at"].endswith("Z")
    assert (last["payload"], last["epoch"]) == (4, since["epoch"])
    assert "replayed" not in last
    assert queue.empty()


def test_subscription_resumes_after_the_position_of_a_message(
    pubsub: PubSub, shared_log: LogDatabase, channel: str, queue: Any
) -> None:
    publish(shared_log, channel, 1, 2, 3)
    pubsub.subscribe(channel, queue, history=3)
    [_, second, _] = [queue.get(timeout=PATIENCE) for _ in range(3)]
    again: Any = green.Queue()
    pubsub.subscribe(channel, again, since={"epoch": second["epoch"], "position": second["position"]})
    assert take(again, 1) == [3]


def test_since_may_be_a_text_or_a_time(pubsub: PubSub, shared_log: LogDatabase, channel: str) -> None:
    publish(shared_log, channel, 1)
    publish(shared_log, channel, 2)
    publish(shared_log, channel, 3)
    [(epoch,)] = shared_log.sql("SELECT epoch::text FROM socketio_pg.head")
    rows = shared_log.sql(
        "SELECT position, logged_at, payload FROM socketio_pg.log WHERE channel = %s ORDER BY position", channel
    )
    assert [payload for _, _, payload in rows] == [1, 2, 3]
    moment = timedelta(microseconds=1)
    for since, expected in (
        (f"{epoch}:{rows[0][0]}", [2, 3]),
        (rows[1][1], [2, 3]),
        (rows[1][1] + moment, [3]),
        (rows[1][1].isoformat(), [2, 3]),
        (rows[2][1].astimezone(timezone(timedelta(hours=5.5))).isoformat(), [3]),
        (rows[2][1] + moment, []),
        ("9999-12-31T23:59:59Z", []),
    ):
        queue: Any = green.Queue()
        subscription = pubsub.subscribe(channel, queue, since=since, on_gap=queue.put)
        assert take(queue, len(expected)) == expected, since
        assert pubsub.read_page(channel, since=since).to_wire(channel)["recovered"] is True
        publish(shared_log, f"{channel}-other", 0)
        assert queue.empty()
        pubsub.unsubscribe(subscription)


def test_time_before_the_trimmed_messages_is_a_gap(log: LogDatabase, queue: Any) -> None:
    """Some of the trimmed ones may have been logged at that time or later."""
    for n in (1, 2, 3):
        publish(log, "a", n)
    [(second,)] = log.sql("SELECT logged_at FROM socketio_pg.log WHERE position = 2")
    [(third,)] = log.sql("SELECT logged_at FROM socketio_pg.log WHERE position = 3")
    assert second < third
    log.sql("DELETE FROM socketio_pg.log WHERE position = 1; UPDATE socketio_pg.head SET trimmed = 1")
    pubsub = PubSub(log.url)
    try:
        pubsub.subscribe("a", queue, since=second, on_gap=queue.put)
        assert queue.get(timeout=PATIENCE)["reason"] == "trimmed"
        assert take(queue, 2) == [2, 3], "it continues with what is left"
        assert pubsub.read_page("a", since=second).recovery == {"recovered": False, "reason": "trimmed"}
        pubsub.subscribe("a", queue, since=second + timedelta(microseconds=1), on_gap=queue.put)
        assert take(queue, 1) == [3]
    finally:
        pubsub.disconnect()


def test_history_replays_the_newest_messages(pubsub: PubSub, shared_log: LogDatabase, channel: str, queue: Any) -> None:
    publish(shared_log, channel, 1, 2, 3, 4)
    pubsub.subscribe(channel, queue, history=2)
    assert take(queue, 2) == [3, 4]
    publish(shared_log, channel, 5)
    assert take(queue, 1) == [5]


def test_plain_subscription_gets_only_new_messages(
    pubsub: PubSub, shared_log: LogDatabase, channel: str, queue: Any
) -> None:
    publish(shared_log, channel, 1)
    subscription = pubsub.subscribe(channel, queue)
    assert subscription.position == pubsub.position()
    publish(shared_log, channel, 2)
    assert take(queue, 1) == [2]


def test_filter_applies_to_replayed_and_live_messages_of_both_tiers(
    pubsub: PubSub, shared_log: LogDatabase, channel: str, queue: Any
) -> None:
    publish(shared_log, channel, '{"n": 1}', '{"n": 2}', '{"n": 3}')
    pubsub.subscribe(channel, queue, history=10, filter={"n": {"gte": 2}})
    assert take(queue, 2) == [{"n": 2}, {"n": 3}]
    publish(shared_log, channel, '{"n": 0}', '{"n": 4}')
    assert take(queue, 1) == [{"n": 4}]
    for n in (1, 5):
        pubsub.publish(channel, {"n": n}, durable=False)
    assert take(queue, 1) == [{"n": 5}]


def test_live_messages_wait_for_a_slow_replay(pubsub: PubSub, shared_log: LogDatabase, channel: str) -> None:
    publish(shared_log, channel, *range(1, 1001))
    queue: Any = green.Queue(1)  # so that the replay waits for its reader
    pubsub.subscribe(channel, queue, history=1000)
    other: Any = green.Queue()
    pubsub.subscribe(channel, other)
    publish(shared_log, channel, *range(1001, 1101))
    assert take(other, 100) == list(range(1001, 1101)), "a subscription is not delayed by another one's replay"
    assert take(queue, 1100) == list(range(1, 1101))
    publish(shared_log, channel, 1101)
    assert take(queue, 1) == take(other, 1) == [1101]


def test_unsubscribe_ends_the_replay(pubsub: PubSub, shared_log: LogDatabase, channel: str) -> None:
    publish(shared_log, channel, *range(1000))
    queue: Any = green.Queue(1)
    subscription = pubsub.subscribe(channel, queue, history=1000)
    assert take(queue, 1) == [0]
    pubsub.unsubscribe(subscription)
    assert pubsub.hub.count_held() == 0
    left: list[Any] = []
    with contextlib.suppress(green.QueueEmpty):
        while True:
            left.append(queue.get(timeout=0.2))
    assert len(left) <= 2, "only the messages that were being put"


def test_replay_continues_after_disconnect_and_start(pubsub: PubSub, shared_log: LogDatabase, channel: str) -> None:
    publish(shared_log, channel, *range(1500))
    queue: Any = green.Queue(1)
    pubsub.subscribe(channel, queue, history=1000)
    pubsub.disconnect()
    publish(shared_log, channel, 1500)
    pubsub.start()
    assert take(queue, 1001) == list(range(500, 1501))


# -- gaps --------------------------------------------------------------------------------------------------------------


def test_since_another_epoch_is_a_gap(pubsub: PubSub, shared_log: LogDatabase, channel: str, queue: Any) -> None:
    publish(shared_log, channel, 1)
    subscription = pubsub.subscribe(channel, queue, since={"epoch": "other", "position": 0}, on_gap=queue.put)
    expected = {"channel": channel, "tier": "log", "reason": "epoch_changed"}
    assert queue.get(timeout=PATIENCE) == expected | dict(subscription.position or {})
    publish(shared_log, channel, 2)
    assert take(queue, 1) == [2]


def test_message_that_cannot_be_parsed_is_a_gap(
    pubsub: PubSub, shared_log: LogDatabase, channel: str, queue: Any
) -> None:
    # A filter sees no values in such a payload.
    subscription = pubsub.subscribe(channel, queue, on_gap=queue.put, filter={"id": None})
    start = subscription.position
    assert start is not None
    publish(shared_log, channel, "[" * 2000 + "]" * 2000)
    gap = queue.get(timeout=PATIENCE)
    assert (gap["channel"], gap["tier"], gap["reason"]) == (channel, "log", "undecodable")
    assert (gap["epoch"], gap["position"] > start["position"]) == (start["epoch"], True)
    publish(shared_log, channel, 2)
    assert take(queue, 1) == [2]


def test_trimmed_messages_are_a_gap_and_the_rest_is_replayed(log: LogDatabase, queue: Any) -> None:
    pubsub = PubSub(log.url)
    try:
        publish(log, "a", 1, 2, 3)
        since = pubsub.position()
        assert since is not None
        log.sql("DELETE FROM socketio_pg.log WHERE position <= 2; UPDATE socketio_pg.head SET trimmed = 2")
        assert pubsub.oldest() == {"epoch": since["epoch"], "position": 2}
        pubsub.subscribe("a", queue, since={"epoch": since["epoch"], "position": 1}, on_gap=queue.put)
        gap = {"channel": "a", "tier": "log", "reason": "trimmed", "epoch": since["epoch"], "position": 2}
        assert queue.get(timeout=PATIENCE) == gap
        assert take(queue, 1) == [3]
        everything: Any = green.Queue()
        pubsub.subscribe("a", everything, since=pubsub.oldest(), on_gap=everything.put)
        assert take(everything, 1) == [3]
    finally:
        pubsub.disconnect()


def test_messages_deleted_by_hand_are_a_gap_for_those_who_return(log: LogDatabase, queue: Any) -> None:
    publish(log, "a", 1, 2, 3, 4, 5)
    # The memory of a server has no messages of before it started.
    pubsub = PubSub(log.url)
    try:
        position = pubsub.position()
        assert position is not None
        epoch = position["epoch"]
        log.sql("DELETE FROM socketio_pg.log WHERE position IN (2, 3)")
        for after, left in ((1, [4, 5]), (2, [4, 5])):
            pubsub.subscribe("a", queue, since={"epoch": epoch, "position": after}, on_gap=queue.put)
            gap = queue.get(timeout=PATIENCE)
            assert (gap["tier"], gap["reason"], gap["epoch"]) == ("log", "trimmed", epoch)
            assert take(queue, 2) == left
            page = pubsub.log.read_page("a", LogPosition(epoch, after), 9)
            assert page.recovery == {"recovered": False, "reason": "trimmed"}
        pubsub.subscribe("a", queue, since={"epoch": epoch, "position": 3}, on_gap=queue.put)
        assert take(queue, 2) == [4, 5], "nothing is missing"
        pubsub.subscribe("a", queue, history=9, on_gap=queue.put)
        assert take(queue, 3) == [1, 4, 5], "the newest messages that there are"
        assert queue.empty()
    finally:
        pubsub.disconnect()


def test_replaced_log_is_a_gap(log: LogDatabase, queue: Any) -> None:
    pubsub = PubSub(log.url)
    try:
        publish(log, "a", 1)
        pubsub.subscribe("a", queue, on_gap=queue.put)
        log.sql("UPDATE socketio_pg.head SET epoch = gen_random_uuid(); NOTIFY \"socketio_pg.log\", 'epoch'")
        pubsub._follower.look()
        gap = queue.get(timeout=PATIENCE)
        assert (gap["channel"], gap["tier"], gap["reason"]) == ("a", "log", "epoch_changed")
        assert {"epoch": gap["epoch"], "position": gap["position"]} == pubsub.position()
    finally:
        pubsub.disconnect()


def test_lost_connection_is_a_gap_of_its_channel(newest_pg: Cluster, channel: str, queue: Any) -> None:
    pubsub = PubSub(newest_pg.url())
    try:
        gaps, others = green.Queue(), green.Queue()
        pubsub.subscribe(channel, queue, on_gap=gaps.put)
        subscription = pubsub.subscribe(channel, queue, on_gap=others.put)
        pubsub.unsubscribe(subscription)
        newest_pg.terminate_backends()
        gap = gaps.get(timeout=PATIENCE)
        assert (gap["channel"], gap["tier"], gap["reason"]) == (channel, "notify", "database_connection_lost")
        assert gap["since"] < gap["until"]
        pubsub.publish(channel, 1)
        assert take(queue, 1) == [1]
        assert others.empty()
    finally:
        pubsub.disconnect()


# -- position and pages ------------------------------------------------------------------------------------------------


def test_read_page_returns_pages_of_the_log(pubsub: PubSub, shared_log: LogDatabase, channel: str) -> None:
    publish(shared_log, channel, *range(1, 6))
    page = pubsub.read_page(channel, history=4, limit=3)
    assert ([message.payload() for message in page.messages], page.more) == ([2, 3, 4], True)
    assert page.epoch is not None
    page = pubsub.read_page(channel, since=Position(epoch=page.epoch, position=page.position))
    assert ([message.payload() for message in page.messages], page.more) == ([5], False)
    page = pubsub.read_page(channel)
    assert (page.messages, {"epoch": page.epoch, "position": page.position}) == ([], pubsub.position())


def test_missing_log_is_a_gap_and_live_messages_arrive(newest_pg: Cluster, channel: str, queue: Any) -> None:
    pubsub = PubSub(newest_pg.url())
    own_listener(pubsub).unlisten_grace = 0.2
    try:
        assert (pubsub.position(), pubsub.oldest(), pubsub.read_page(channel).epoch) == (None, None, None)
        subscription = pubsub.subscribe(channel, queue, since={"epoch": "e", "position": 1}, on_gap=queue.put)
        assert subscription.position is None
        assert queue.get(timeout=PATIENCE) == {"channel": channel, "tier": "log", "reason": "not_installed"}
        pubsub.publish(channel, 1)
        assert queue.get(timeout=PATIENCE) == {"channel": channel, "payload": 1}
    finally:
        pubsub.disconnect()


@pytest.mark.parametrize(
    "options",
    [
        {"since": {"epoch": "e", "position": 1}, "history": 1},
        {"since": {"epoch": "e"}},
        {"history": -1},
        {"filter": {"n": {"near": 1}}},
    ],
)
def test_invalid_options_are_refused(pubsub: PubSub, channel: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        pubsub.subscribe(channel, green.Queue(), **options)
    assert len(pubsub.hub) == 0


def test_installing_and_removing_are_no_attack(
    pubsub: PubSub, shared_log: LogDatabase, channel: str, queue: Any
) -> None:
    """`init` and `drop` do not seal what they send: a node that has a key does not count it as refused."""
    pubsub.subscribe(channel, queue)
    with green.timeout(PATIENCE):
        while not pubsub.sealing.ready:
            green.sleep(0.01)
    for text in (INSTALLED, REMOVED):
        shared_log.sql(f"NOTIFY {LOG_CHANNEL}, '{text}'")
    shared_log.sql("SELECT pg_notify(%s, '1')", channel)
    assert take(queue, 1) == [1]
    assert pubsub.sealing.refused() == []


def test_pattern_gets_all_channels_that_match(
    pubsub: PubSub, shared_log: LogDatabase, channel: str, queue: Any
) -> None:
    """`since` and `history` over all of them, from the log and from memory; each subscription has its messages."""
    publish(shared_log, f"{channel}:1", 1)
    since = pubsub.position()
    assert since is not None
    publish(shared_log, f"{channel}:2", 2, 3)
    publish(shared_log, f"{channel}-other", 0)
    publish(shared_log, f"{channel}:", 4)
    live: list[dict[str, Any]] = []
    pubsub.subscribe_pattern(f"{channel}:*", queue, since=since, on_live=live.append)
    found = [queue.get(timeout=PATIENCE) for _ in range(3)]
    assert [(one["channel"], one["payload"], one["pattern"]) for one in found] == [
        (f"{channel}:2", 2, f"{channel}:*"), (f"{channel}:2", 3, f"{channel}:*"), (f"{channel}:", 4, f"{channel}:*")
    ]  # fmt: skip
    until(lambda: live, "it is live")
    assert live[0]["pattern"] == f"{channel}:*"
    fresh = PubSub(shared_log.url)  # without messages in memory
    try:
        for one, count in ((pubsub, 2), (fresh, 3)):
            newest: Any = green.Queue()
            one.subscribe_pattern(f"{channel}*:*", newest, history=count)
            assert take(newest, count) == [1, 2, 3, 4][-count:]
    finally:
        fresh.disconnect()
    exact: Any = green.Queue()
    pubsub.subscribe(f"{channel}:9", exact)
    pubsub.subscribe_pattern(f"{channel}:*", exact, filter={"n": {"gt": 5}})
    publish(shared_log, f"{channel}:9", '{"n": 5}', '{"n": 6}')
    shared_log.sql("SELECT pg_notify(%s, '7')", f"{channel}:9")  # heard because of the subscription to the channel
    seen = sorted((exact.get(timeout=PATIENCE) for _ in range(4)), key=lambda one: (str(one["payload"]), len(one)))
    assert [(one["payload"], "pattern" in one) for one in seen] == [
        (7, False), ({"n": 5}, False), ({"n": 6}, False), ({"n": 6}, True)
    ]  # fmt: skip


def test_pattern_needs_a_log(postgres: Cluster, queue: Any) -> None:
    pubsub = PubSub(postgres.url())
    try:
        with pytest.raises(LogNotInstalledError):
            pubsub.subscribe_pattern("foo:*", queue)
        assert not pubsub.hub.patterns
        with pytest.raises(InvalidChannelError):
            pubsub.subscribe_pattern("foo", queue)
    finally:
        pubsub.disconnect()
