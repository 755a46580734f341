"""Clients for people: presence, ephemeral messages, patterns, senders, with socketio_pg.js and both Python clients.

Connections go through a proxy, which cuts them and refuses new ones as long as a test needs.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.patience import until
from tests.support.people_clients import PEOPLE, SECRET, JavaScriptPerson, Person, tokens
from tests.support.postgres import Cluster
from tests.support.replay_clients import ProxiedLog, Refused, numbers


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[ProxiedLog]:
    made = ProxiedLog(
        newest_pg, "people_clients", AUTH="optional", AUTHORIZATION="off", JWT_SECRET=SECRET, PUBLIC_CHANNELS="*",
        PUBLISH="all", EPHEMERAL="all", PRESENCE="all",
        CHANNEL_RULES='{"*:kept": {"retained": true}, "*:rare": {"max_rate": 20}}',
    )  # fmt: skip
    made.install()
    yield made
    made.close()


# Nightly: it shares its decisions with the subscriber for threads.
@pytest.fixture(params=["javascript", "python", pytest.param("asyncio", marks=pytest.mark.nightly)])
def person(request: pytest.FixtureRequest, log: ProxiedLog) -> Iterator[Callable[..., Person]]:
    """Makes clients with the same library: with the name of a person, or anonymous."""
    with contextlib.ExitStack() as stack:

        def make(sub: str | None = None) -> Person:
            made: Person = PEOPLE[request.param](log.address, None if sub is None else tokens(sub))
            return stack.enter_context(contextlib.closing(made))

        yield make
    log.proxy.restore()


def test_ephemeral_messages_go_to_their_own_handler(
    log: ProxiedLog, person: Callable[..., Person], channel: str
) -> None:
    ann, ben = person("ann"), person()
    ann.subscribe("one", channel)
    ben.subscribe("one", channel)
    assert ben.send(channel, {"x": 1}, key="cursor")
    message = ann.ephemeral("one")
    sender = {"client": message["from"]["client"]}
    assert message == {
        "channel": channel, "payload": {"x": 1}, "ephemeral": True, "key": "cursor", "from": sender,
    }  # fmt: skip
    assert ann.send(channel, "typing", echo=True)
    assert {ann.ephemeral("one")["from"]["sub"], ben.ephemeral("one")["from"]["sub"]} == {"ann"}
    # Many at once: the newest one arrives.
    for number in range(200):
        ben.send(channel, number, key="cursor")
    while ann.ephemeral("one")["payload"] != 199:
        pass
    # Messages of the log follow as before: the others are no messages of the subscription.
    log.publish(channel, 1, 1)
    message, position = ann.next("message", "one")
    assert (message["payload"], message["position"]) == ([1, ""], position["position"])

    # Not while disconnected: nothing waits for the connection. Afterwards again.
    log.proxy.refuse()
    ben.wait_disconnected()
    assert ben.send(channel, "lost") is False
    log.proxy.restore()
    ann.next("gap", "one")
    ben.next("gap", "one")
    assert ben.send(channel, "back")
    assert ann.ephemeral("one")["payload"] == "back"


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_messages_say_who_sent_them_and_the_sender_may_be_left_out(
    log: ProxiedLog, person: Callable[..., Person], channel: str
) -> None:
    ann, ben = person("ann"), person()
    ann.subscribe("one", channel)
    ben.subscribe("one", channel)
    for durable in (True, False):
        ann.publish(channel, "for others", durable=durable, echo=False, traceparent=TRACE)
        ann.publish(channel, "for all", durable=durable)
        message, _ = ben.next("message", "one")
        assert (message["payload"], message["from"], message["traceparent"]) == ("for others", {"sub": "ann"}, TRACE)
        assert ben.next("message", "one")[0]["payload"] == "for all"
        message, _ = ann.next("message", "one")
        assert (message["payload"], message["from"]) == ("for all", {"sub": "ann"})
        assert "traceparent" not in message
    ben.publish(channel, "anonymous")
    assert "from" not in ann.next("message", "one")[0]

    # The same in a replay.
    ben.next("message", "one")
    log.proxy.refuse()
    ben.wait_disconnected()
    log.publish(channel, 1, 1)
    log.proxy.restore()
    message, _ = ben.next("message", "one")
    assert (message["payload"], "from" in message) == ([1, ""], False)
    late = person("late")
    late.subscribe("one", channel, history=4)
    first, _ = late.next("message", "one")
    assert (first["payload"], first["from"], first["replayed"]) == ("for others", {"sub": "ann"}, True)


def test_each_subscription_that_matches_gets_a_message_once(
    log: ProxiedLog, person: Callable[..., Person], channel: str
) -> None:
    first, second, third = (f"{channel}:{number}" for number in (1, 2, 3))
    one = person()
    one.subscribe_pattern("all", f"{channel}:*")
    one.subscribe("first", first)
    one.subscribe_pattern("ones", f"{channel}*1", filter={"0": {"gt": 1}})
    log.publish(first, 1, 2)
    log.publish(second, 3, 3)
    message, _ = one.next("message", "all")
    assert (message["channel"], message["payload"]) == (first, [1, ""])
    assert sorted(message["matches"]) == sorted([first, f"{channel}:*"])
    assert numbers(one, "all", 2) == [2, 3]
    assert numbers(one, "first", 2) == [1, 2]
    assert numbers(one, "ones", 1) == [2]

    # Each one continues by itself, also with channels that are new.
    log.proxy.refuse()
    one.wait_disconnected()
    log.publish(first, 4, 4)
    log.publish(second, 5, 5)
    log.publish(third, 6, 6)
    log.proxy.restore()
    assert numbers(one, "all", 3) == [4, 5, 6]
    one.unsubscribe("ones")
    log.publish(first, 7, 7)
    assert numbers(one, "all", 1) == numbers(one, "first", 2)[1:] == [7]
    one.unsubscribe("first")
    log.publish(first, 8, 8)
    message, _ = one.next("message", "all")
    assert (message["payload"][0], message["pattern"]) == (8, f"{channel}:*")
    assert one.position("all") == {"epoch": message["epoch"], "position": message["position"]}

    late = person()
    late.subscribe_pattern("all", f"{channel}:*", history=2)
    assert numbers(late, "all", 2) == [7, 8]
    with pytest.raises(Refused, match="invalid_channel"):
        late.subscribe("wrong", f"{channel}:*")
    with pytest.raises(Refused, match="invalid_channel"):
        late.subscribe_pattern("wrong", channel)


def states(person: Person, name: str) -> dict[str, Any]:
    return {key: [meta["state"] for meta in one["metas"]] for key, one in person.members(name).items()}


def test_people_join_change_and_leave(log: ProxiedLog, person: Callable[..., Person], channel: str) -> None:
    eve, ann, tab = person("eve"), person("ann"), person("ann")
    for one in (eve, ann, tab):
        one.watch("room", channel)
    assert eve.members("room") == {}
    ann.call_presence("room", "join", {"name": "Ann"})
    assert eve.change("room") == ("join", "ann")
    assert (ann.own_key("room"), eve.own_key("room")) == ("ann", None)
    tab.call_presence("room", "join", {"tab": 2})
    assert eve.change("room") == ("update", "ann")
    assert states(eve, "room") == {"ann": [{"name": "Ann"}, {"tab": 2}]}
    assert eve.count("room") == 1
    tab.call_presence("room", "leave")
    assert eve.change("room") == ("update", "ann")
    ann.call_presence("room", "update", {"name": "Ann", "away": True})
    assert eve.change("room") == ("update", "ann")
    with pytest.raises(Refused, match="payload_too_large"):
        ann.call_presence("room", "update", "x" * 2_000)
    if isinstance(tab, JavaScriptPerson):
        tab.call("changeState", name="room", state={"n": 1}, change={"n": 2})
        until(lambda: {"n": 2} in states(eve, "room")["ann"], "the changed object has arrived")
        tab.call_presence("room", "leave")
        until(lambda: states(eve, "room")["ann"] == [{"name": "Ann", "away": True}], "the tab has left")
        assert {change for change, _ in eve.changes("room")} == {"update"}
        while eve.changes("room"):
            eve.change("room")
    # Keys of anonymous clients are their own choice.
    ben = person()
    ben.watch("room", channel)
    ben.call_presence("room", "join", {"__proto__": 1}, key="__proto__")
    assert eve.change("room") == ("join", "anonymous:__proto__")
    everyone = {"ann": [{"name": "Ann", "away": True}], "anonymous:__proto__": [{"__proto__": 1}]}
    assert states(eve, "room") == everyone

    # All are cut off, and come back: nobody has left or joined.
    log.proxy.refuse()
    for one in (eve, ann, tab, ben):
        one.wait_disconnected()
    log.proxy.restore()
    until(lambda: ben.own_key("room") and states(eve, "room") == everyone, "all are back")
    ann.call_presence("room", "update", {"name": "Ann"})
    until(lambda: states(eve, "room")["ann"] == [{"name": "Ann"}], "the update has arrived")

    # Joined by subscribe(), which also has the messages; close() leaves.
    ben.subscribe("messages", channel)
    log.publish(channel, 1, 1)
    assert numbers(ben, "messages", 1) == [1]
    ben.call_presence("room", "close")
    while (change := eve.change("room")) != ("leave", "anonymous:__proto__"):
        assert change[0] == "update", "a connection that has returned has another ref"
    log.publish(channel, 2, 2)
    assert numbers(ben, "messages", 1) == [2]
    ann.call_presence("room", "close")
    assert eve.change("room") == ("leave", "ann")
    assert eve.changes("room") == []
    assert (eve.members("room"), eve.count("room")) == ({}, 0)


def test_the_server_sends_to_a_user_and_ends_its_connections(
    log: ProxiedLog, person: Callable[..., Person], channel: str
) -> None:
    ann, ben = person("ann"), person("ben")
    for one in (ann, ben):
        one.subscribe("one", channel)
        one.watch("room", channel)
        one.call_presence("room", "join")
    assert [ann.change("room"), ann.change("room")] == [("join", "ann"), ("join", "ben")]
    log.sql("""SELECT socketio_pg.send_to_user('ann', '{"text": "hello"}')""")
    assert ann.direct() == {"payload": {"text": "hello"}}
    log.sql("SELECT socketio_pg.disconnect_user('ben')")
    assert ben.stopped("one") == "ended_by_server"
    ben.wait_disconnected()
    assert ann.change("room") == ("leave", "ben")
    log.publish(channel, 1, 1)
    assert numbers(ann, "one", 1) == [1]
    if isinstance(ben, JavaScriptPerson):
        # It comes back when the application says so.
        ben.call("connect")
        assert numbers(ben, "one", 1) == [1]
        assert ann.change("room") == ("join", "ben")


def test_the_retained_message_comes_first(log: ProxiedLog, person: Callable[..., Person], channel: str) -> None:
    kept = f"{channel}:kept"
    log.publish(kept, 1, 3)
    log.settle()
    one = person()
    one.subscribe("one", kept)
    message, _ = one.next("message", "one")
    assert (message["payload"][0], message["retained"]) == (3, True)
    position = one.position("one")
    assert position["epoch"] == message["epoch"]
    assert position["position"] >= message["position"]
    # Another handler of the channel gets it too, and the first one not once more.
    one.subscribe("two", kept)
    message, _ = one.next("message", "two")
    assert (message["payload"][0], message["retained"]) == (3, True)
    one.watch("room", kept)
    log.publish(kept, 4, 4)
    assert numbers(one, "one", 1) == numbers(one, "two", 1) == [4]
    # Not after a reconnect, which misses nothing.
    log.proxy.refuse()
    one.wait_disconnected()
    log.publish(kept, 5, 5)
    log.proxy.restore()
    assert numbers(one, "one", 1) == numbers(one, "two", 1) == [5]
    log.publish(kept, 6, 6)
    assert numbers(one, "one", 1) == numbers(one, "two", 1) == [6]

    # In a channel with a limit the newest message of several arrives.
    rare = f"{channel}:rare"
    one.subscribe("rare", rare)
    assert (one.max_rate("rare"), one.max_rate("one")) == (20, None)
    log.publish(rare, 1, 100)
    while numbers(one, "rare", 1) != [100]:
        pass
