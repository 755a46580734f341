"""Subscriptions to patterns at a real server: once for each client, replays, limits and errors."""

import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from socketio_pg.core.channels import match_pattern
from tests.support.clients import SocketClient, code
from tests.support.log import Log, since
from tests.support.patience import until


@pytest.fixture
def client(log: Log) -> Iterator[SocketClient]:
    with SocketClient(log.server.url) as made:
        yield made


def subscribe(client: SocketClient, name: str, **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = client.call("subscribe", {"pattern" if "*" in name else "channel": name, **more})
    assert answer["ok"], answer
    return answer


def publish(log: Log, channel: str, *payloads: str) -> None:
    log.sql("SELECT socketio_pg.publish(%s, p::jsonb) FROM unnest(%s) AS p", channel, list(payloads))


def names_of(event: dict[str, Any]) -> list[str]:
    """Return the subscriptions that an event names."""
    assert not ("pattern" in event and "matches" in event)
    found: list[str] = event.get("matches") or [event.get("pattern", event["channel"])]
    return found


def test_a_message_arrives_once_and_names_the_subscriptions(log: Log, client: SocketClient, channel: str) -> None:
    answer = subscribe(client, f"{channel}:*")
    assert answer.pop("position") >= 0
    assert answer.pop("epoch")
    assert answer == {"ok": True, "pattern": f"{channel}:*", "tier": "log"}
    subscribe(client, f"{channel}:7")
    subscribe(client, f"{channel}:*:eu", filter={"n": {"gt": 5}})
    with SocketClient(log.server.url, transports=("polling",)) as other:
        subscribe(other, f"{channel}*")
        subscribe(other, f"{channel}:8")
        publish(log, f"{channel}:7", '{"n": 1}')
        publish(log, f"{channel}:8", '{"n": 2}')
        publish(log, f"{channel}:8:eu", '{"n": 3}', '{"n": 6}')
        publish(log, f"{channel}", '{"n": 7}')
        publish(log, f"{channel}:7", '{"n": 8}')
        events = [client.next("event") for _ in range(5)]
        assert [(one["payload"]["n"], one["channel"], names_of(one)) for one in events] == [
            (1, f"{channel}:7", [f"{channel}:7", f"{channel}:*"]),
            (2, f"{channel}:8", [f"{channel}:*"]),
            (3, f"{channel}:8:eu", [f"{channel}:*"]),
            (6, f"{channel}:8:eu", [f"{channel}:*", f"{channel}:*:eu"]),
            (8, f"{channel}:7", [f"{channel}:7", f"{channel}:*"]),
        ]
        assert set(events[1]) == {"channel", "payload", "position", "published_at", "pattern"}
        found = [other.next("event") for _ in range(6)]
        assert [one["payload"]["n"] for one in found] == [1, 2, 3, 6, 7, 8]
        assert [len(names_of(one)) for one in found] == [1, 2, 1, 1, 1, 1]
    # In both forms of numbers if the subscriptions want different ones.
    subscribe(client, f"{channel}:7", numbers="string")
    publish(log, f"{channel}:7", '{"n": 9}')
    both = sorted((client.next("event") for _ in range(2)), key=str)
    assert [(one["payload"]["n"], names_of(one)) for one in both] == [("9", [f"{channel}:7"]), (9, [f"{channel}:*"])]
    # A NOTIFY is heard because of the subscription to its channel.
    log.sql("SELECT pg_notify(%s, '{\"n\": 10}')", f"{channel}:7")
    both = [client.next("event") for _ in range(2)]
    assert sorted(str(one["payload"]["n"]) for one in both) == ["10", "10"]
    assert client.call("unsubscribe", {"pattern": f"{channel}:*"}) == {"ok": True, "pattern": f"{channel}:*"}
    publish(log, f"{channel}:8", '{"n": 11}')
    publish(log, f"{channel}:7", '{"n": 12}')
    last = client.next("event")
    assert (last["payload"]["n"], names_of(last)) == ("12", [f"{channel}:7"])
    assert client.pending("event") == 0


def test_invalid_patterns_and_limits(log: Log, client: SocketClient, channel: str) -> None:
    for request, expected in [
        ({"pattern": "foo"}, "invalid_channel"),
        ({"pattern": "a**"}, "invalid_channel"),
        ({"pattern": None}, "invalid_channel"),
        ({"pattern": "socketio_pg*"}, "invalid_channel"),
        ({"pattern": "foo:*", "channel": "foo"}, "invalid_request"),
        ({"channel": "foo:*"}, "invalid_channel"),
        ({"pattern": "*"}, "forbidden"),  # PATTERN_MIN_PREFIX
        ({"pattern": "*:foo"}, "forbidden"),
    ]:
        assert code(client.call("subscribe", request)) == expected, request
    client.io.emit("subscribe", {"pattern": "a**"})
    assert client.next("error")["pattern"] == "a**"
    answer = client.call("subscribe", {"channels": [{"pattern": f"{channel}:{n}:*"} for n in range(21)] + [channel]})
    results = answer["channels"]
    assert [one["ok"] for one in results] == [True] * 20 + [False, True]
    assert (results[20]["error"]["code"], results[20]["pattern"]) == ("too_many_subscriptions", f"{channel}:20:*")
    assert (results[0]["pattern"], results[0]["tier"], results[-1]["channel"]) == (f"{channel}:0:*", "log", channel)
    answer = client.call("unsubscribe", {"channels": [{"pattern": f"{channel}:0:*"}, channel]})
    assert answer["channels"] == [{"ok": True, "pattern": f"{channel}:0:*"}, {"ok": True, "channel": channel}]
    subscribe(client, f"{channel}:20:*")


def test_one_since_for_all_channels(log: Log, client: SocketClient, channel: str) -> None:
    """A position, a snapshot and a number of messages; a pattern and a channel that it matches together."""
    start = subscribe(client, f"{channel}:start")
    publish(log, f"{channel}:1", "1", "2")
    publish(log, f"{channel}:2", "3")
    [(token,)] = log.sql("SELECT socketio_pg.snapshot()")
    publish(log, f"{channel}:1", "4")
    publish(log, f"{channel}-other", "0")
    log.settle()
    for request, expected in (
        ({"since": since(start)}, [1, 2, 3, 4]),
        ({"since": token}, [4]),
        ({"history": 2}, [3, 4]),
    ):
        with SocketClient(log.server.url) as other:
            answer = subscribe(other, f"{channel}:*", **request)
            assert answer.get("recovered", True) is True
            found = [other.next("event") for _ in expected]
            assert [one["payload"] for one in found] == expected, request
            assert all(one["replayed"] and one["pattern"] == f"{channel}:*" for one in found)
            live = other.next("live")
            assert (live["pattern"], "channel" in live) == (f"{channel}:*", False)
            assert other.pending("event") == 0
    together = [{"pattern": f"{channel}:*"}, f"{channel}:1"]
    client.call("subscribe", {"channels": together, "since": since(start)})
    found = [client.next("event") for _ in range(4)]
    assert [one["payload"] for one in found] == [1, 2, 3, 4]
    assert [len(names_of(one)) for one in found] == [2, 2, 1, 2]


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(2, 30))])
def test_random_subscriptions_get_each_message_once(log: Log, channel: str, seed: int) -> None:
    """Clients subscribe and unsubscribe, with filters and replays, while messages are published to six channels."""
    generator = random.Random(seed)
    channels = [f"{channel}:{one}" for one in ("a", "b", "a:x", "a:y", "b:x", "")]
    names = [*channels, *(f"{channel}{one}" for one in ("*", ":*", ":a*", ":a:*", ":*:x", ":*y", ":b*x"))]
    model = [_Model(SocketClient(log.server.url), f"marker-{channel}-{n}") for n in range(3)]
    #: (channel, number), in the order of positions.
    published: list[tuple[str, int]] = []
    try:
        first = since(subscribe(model[0].client, f"marker-{channel}"))
        for _ in range(40):
            for one in model:
                one.check(log)  # so that it is known which messages precede the change
            one = generator.choice(model)
            name = generator.choice(names)
            if generator.random() < 0.35 and name in one.filters:
                field = "pattern" if "*" in name else "channel"
                assert one.client.call("unsubscribe", {field: name})["ok"]
                del one.filters[name]
            elif generator.random() < 0.6:
                least = generator.choice([None, 30, 60])
                replay: dict[str, Any] = generator.choice([{}, {}, {"history": 3}, {"since": first}])
                subscribe(one.client, name, filter=least and {"n": {"gte": least}}, **replay)
                one.filters[name] = least or 0
                if replay:
                    found = [(at, n) for at, n in published if match_pattern(name, at)]
                    found = found[-3:] if "history" in replay else found
                    one.expected += [("replayed", at, n, (name,)) for at, n in found if n >= (least or 0)]
                    until(lambda one=one: one.client.pending("live"), "it is live")  # type: ignore[misc]
                    one.client.next("live")
            for _ in range(generator.randrange(4)):
                at, n = generator.choice(channels), generator.randrange(100)
                publish(log, at, f'{{"n": {n}}}')
                published.append((at, n))
                for other in model:
                    other.expect(at, n)
        for one in model:
            one.check(log)
    finally:
        for one in model:
            one.client.close()


class _Model:
    """A client, and what it should get."""

    def __init__(self, client: SocketClient, marker: str) -> None:
        self.client, self.marker = client, marker
        #: Subscription → the smallest number that its filter lets through.
        self.filters: dict[str, int] = {}
        self.expected: list[tuple[str, str, int, tuple[str, ...]]] = []
        subscribe(client, marker)

    def expect(self, channel: str, number: int) -> None:
        through = [name for name, least in self.filters.items() if match_pattern(name, channel) and number >= least]
        if through:
            in_order = tuple(sorted(through, key=lambda name: ("*" in name, name)))
            self.expected.append(("live", channel, number, in_order))

    def check(self, log: Log) -> None:
        """Wait for a message that was published last, and compare what came before it."""
        publish(log, self.marker, "0")
        got = []
        while (event := self.client.next("event"))["channel"] != self.marker:
            kind = "replayed" if event.get("replayed") else "live"
            got.append((kind, event["channel"], event["payload"]["n"], tuple(names_of(event))))
        assert got == self.expected
        self.expected.clear()


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1, 12))
def test_changes_while_messages_arrive(log: Log, channel: str, seed: int) -> None:
    """Subscriptions that begin and end at any time: complete from their position on, and each message once."""
    generator = random.Random(seed)
    names = [f"{channel}:a", f"{channel}:b", *(f"{channel}{one}" for one in (":*", "*:a", ":a*", "*"))]
    ended = threading.Event()

    def publish_all() -> None:
        numbers = random.Random(seed)
        for number in range(400):
            publish(log, f"{channel}:{numbers.choice('abc')}", str(number))
        ended.set()

    with SocketClient(log.server.url) as client:
        subscribe(client, f"{channel}-end")
        publisher = threading.Thread(target=publish_all)
        publisher.start()
        #: Subscription → the position after which it began, for those that have not ended.
        begun: dict[str, int] = {}
        #: (name, first position, last position, which is not known for those that go on)
        spans: list[tuple[str, int, int | None]] = []
        try:
            for _ in range(300):  # more would be too many events
                if ended.is_set():
                    break
                name = generator.choice(names)
                if name in begun:
                    # The position of another subscription is one that has not been passed yet.
                    upto = client.call("subscribe", {"channel": f"{channel}-end"})["position"]
                    assert client.call("unsubscribe", {"pattern" if "*" in name else "channel": name})["ok"]
                    spans.append((name, begun.pop(name), upto))
                else:
                    begun[name] = subscribe(client, name)["position"]
        finally:
            publisher.join()
        publish(log, f"{channel}-end", "0")
        events = []
        while (event := client.next("event"))["channel"] != f"{channel}-end":
            events.append(event)
    spans += [(name, after, None) for name, after in begun.items()]
    positions = [event["position"] for event in events]
    assert positions == sorted(set(positions)), "in order, and none twice"
    published = log.sql(
        "SELECT position, channel FROM socketio_pg.log WHERE starts_with(channel, %s) ORDER BY position", f"{channel}:"
    )
    got = {event["position"]: set(names_of(event)) for event in events}
    for name, after, upto in spans:
        for position, at in published:
            if match_pattern(name, at) and position > after and (upto is None or position <= upto):
                assert name in got[position], (name, after, upto, position)
