"""presence/ on a real database: several processes, which die, are cut off, and lose what the database knows."""

import contextlib
import itertools
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from socketio_pg.core import green
from tests.support.bus import know, wait
from tests.support.log_database import LogDatabase
from tests.support.party import Party
from tests.support.postgres import Cluster
from tests.support.proxy import Proxy


@pytest.fixture(scope="module")
def database(postgres: Cluster) -> LogDatabase:
    return LogDatabase(postgres, "presence")


@pytest.fixture
def party(database: LogDatabase) -> Iterator[Party]:
    with contextlib.closing(Party(database)) as made:
        yield made
    database.sql("TRUNCATE socketio_pg.presence_member, socketio_pg.presence_process, socketio_pg.presence_channel")


@pytest.fixture
def proxy(database: LogDatabase) -> Iterator[Proxy]:
    made = Proxy(database.cluster.socket_path)
    yield made
    made.close()


def behind(proxy: Proxy, database: LogDatabase) -> str:
    return proxy.url.removesuffix("/postgres") + f"/{database.name}"


@pytest.mark.majors
def test_members_are_the_same_in_all_processes(party: Party) -> None:
    one, two = party.guest(), party.guest()
    know(one.bus, two.bus)
    for guest in (one, two):
        guest.watch("x")
    ann = one.presence.join("a1", "x", "ann", "1")
    party.wait_states("x", {"ann": [1]})
    two.presence.join("a2", "x", "ann", "2")
    two.presence.join("b1", "x", "bob", '{"name": "Bob"}')
    party.wait_states("x", {"ann": [1, 2], "bob": [{"name": "Bob"}]})
    one.presence.join("a1", "x", "ann", '"away"')
    party.wait_states("x", {"ann": ["away", 2], "bob": [{"name": "Bob"}]})
    assert party.rows("x") == [("ann", "away"), ("ann", 2), ("bob", {"name": "Bob"})]
    assert one.presence.members("x") == two.presence.members("x")
    assert [guest.presence.count("x") for guest in (one, two)] == [2, 2]
    # A recovered session: the same connection in another process.
    moved = two.presence.join("a1", "x", "ann", ann.state, ref=ann.ref, joined_at=ann.joined_at)
    wait(lambda: one.presence.get("a1", "x") is None, "the other process has it no more")
    assert moved.ref == ann.ref
    one.presence.leave_all("a1")
    two.presence.leave("b1", "x")
    party.wait_states("x", {"ann": ["away", 2]})
    for client in ("a1", "a2"):
        two.presence.leave_all(client)
    party.wait_states("x", {})
    wait(lambda: party.rows("x") == [], "the rows are deleted")
    assert party.database.sql("SELECT * FROM socketio_pg.presence_channel") == []
    assert one.told == two.told
    assert one.told["x"].count("joined ann") == one.told["x"].count("left ann") == 1
    assert sorted(one.observed + two.observed) == [("occupied", "x"), ("vacated", "x")]


def test_leaving_while_earlier_joins_are_being_written(party: Party) -> None:
    """What waits for the next statement of the same round is not in the database yet, and must not stay there."""
    one = party.guest()
    one.presence._table.batch = 1
    one.presence.join("first", "x", "first", "1")
    wait(lambda: party.rows("x") == [("first", 1)], "it is written")
    with contextlib.closing(party.database.connect()) as lock:
        cursor = lock.cursor()
        cursor.execute("BEGIN; LOCK TABLE socketio_pg.presence_member IN EXCLUSIVE MODE")
        for key in ("ann", "bob", "cid"):
            one.presence.join(key, "x", key, "1")
        waiting = "SELECT 1 FROM pg_locks WHERE relation = 'socketio_pg.presence_member'::regclass AND NOT granted"
        wait(lambda: party.database.sql(waiting) != [], "the first one is being written")
        one.presence.leave_all("cid")
        cursor.execute("COMMIT")
    wait(lambda: party.rows("x") == [("ann", 1), ("bob", 1), ("first", 1)], "the others are written")
    one.presence.join("dan", "x", "dan", "1")
    wait(lambda: ("dan", 1) in party.rows("x"), "the next round is written")
    assert party.rows("x") == [("ann", 1), ("bob", 1), ("dan", 1), ("first", 1)]


def test_a_channel_that_only_a_program_looks_at_does_not_collect_changes(party: Party) -> None:
    one = party.guest()
    one.presence.linger = 1.0
    one.presence.members("x")
    one.presence.join("a1", "x", "ann", "1")
    assert one.presence._open["x"].roster.changed
    wait(lambda: one.presence.count("x") == 1 and not one.presence._open["x"].roster.changed, "they are forgotten")


def test_a_person_that_returns_takes_the_place_of_a_lost_connection(party: Party) -> None:
    one, two = party.guest(), party.guest()
    know(one.bus, two.bus)
    for guest in (one, two):
        guest.watch("x")
    for client in ("t1", "t2"):
        one.presence.join(client, "x", "ann", "1")
    party.wait_states("x", {"ann": [1, 1]})
    for client in ("t1", "t2"):
        one.presence.lose(client)
    one.presence.join("t3", "x", "ann", "2")
    party.wait_states("x", {"ann": [1, 2]})
    two.presence.join("t4", "x", "ann", "3")
    party.wait_states("x", {"ann": [2, 3]})
    # It returns with the same session.
    one.presence.lose("t3")
    one.presence.join("t3", "x", "ann", "2")
    one.presence._grace = 0.0
    green.sleep(5 * one.presence.tick)
    assert one.states("x") == {"ann": [2, 3]}
    one.presence.lose("t3")
    party.wait_states("x", {"ann": [3]})
    assert "left ann" not in one.told["x"] + two.told["x"]


def test_members_of_a_dead_process_leave_and_a_process_that_was_taken_for_dead_comes_back(
    party: Party, proxy: Proxy
) -> None:
    one, two = party.guest(), party.guest()
    cut = party.guest(behind(proxy, party.database))
    know(one.bus, two.bus, cut.bus)
    guests = (one, two, cut)
    for guest, key in zip(guests, ("ann", "bob", "cid"), strict=True):
        guest.watch("x")
        guest.presence.join(key, "x", key, "1")
        guest.presence.join(key, "only " + key, key, "1")
    party.wait_states("x", {"ann": [1], "bob": [1], "cid": [1]})
    for guest in guests:
        guest.told["x"].clear()
    two.die()
    party.guests.remove(two)
    proxy.black_hole()
    party.expire(two, cut)
    party.wait_states("x", {"ann": [1]}, one)
    assert party.rows("only cid") == party.rows("only bob") == []
    assert sorted(one.told["x"]) == ["left bob", "left cid"]
    wait(lambda: cut.presence.stale, "it knows that it is cut off")
    assert set(cut.states("x")) >= {"ann", "cid"}
    cut.presence.join("dan", "x", "dan", "1")
    one.presence.join("eve", "x", "eve", "1")
    proxy.restore()
    party.wait_states("x", {"ann": [1], "cid": [1], "dan": [1], "eve": [1]})
    wait(lambda: not cut.presence.stale, "it is back")
    assert party.rows("only cid") == [("cid", 1)]
    # No storm: everybody is told the difference only.
    assert sorted(one.told["x"]) == ["joined cid", "joined dan", "joined eve", "left bob", "left cid"]
    assert sorted(cut.told["x"]) == ["joined dan", "joined eve", "left bob"]
    assert [event for event in one.observed + cut.observed if event[1] == "only bob"] == [("vacated", "only bob")]


def test_nobody_leaves_when_a_crash_empties_the_tables(party: Party) -> None:
    one, two = party.guest(), party.guest()
    know(one.bus, two.bus)
    keys = [f"k{number}" for number in range(50)]
    for guest in (one, two):
        guest.watch("x")
    for guest, key in zip(itertools.cycle((one, two)), keys, strict=False):
        guest.presence.join(key, "x", key, "1")
    everybody = {key: [1] for key in keys}
    party.wait_states("x", everybody)
    for guest in (one, two):
        guest.told["x"].clear()
    party.database.sql(
        "TRUNCATE socketio_pg.presence_member, socketio_pg.presence_process, socketio_pg.presence_channel"
    )
    party.database.cluster.terminate_backends("socketio_pg presence")
    wait(lambda: len(party.rows("x")) == len(keys), "all have been written again")
    two.presence.leave("k1", "x")
    del everybody["k1"]
    party.wait_states("x", everybody)
    wait(lambda: not any(g.presence._open["x"].unsettled for g in (one, two)), "the database counts again")
    assert one.states("x") == two.states("x") == everybody
    assert one.told["x"] == two.told["x"] == ["left k1"]


@pytest.mark.nightly
def test_nobody_leaves_when_all_processes_lose_the_database_for_long(party: Party, proxy: Proxy) -> None:
    guests = [party.guest(behind(proxy, party.database)) for _ in range(3)]
    know(*(guest.bus for guest in guests))
    for number, guest in enumerate(guests):
        guest.presence._table.lease = 1.0
        guest.watch("x")
        guest.presence.join(str(number), "x", str(number), "1")
    everybody: dict[str, list[Any]] = {str(number): [1] for number in range(3)}
    party.wait_states("x", everybody)
    for guest in guests:
        guest.presence._table.forbearance = 3.0
        guest.told["x"].clear()
    proxy.black_hole()
    wait(lambda: all(guest.presence.stale for guest in guests), "all are cut off")
    wait(lambda: party.rows("x") == [], "for long")
    proxy.restore()
    wait(lambda: len(party.rows("x")) == 3, "all are back")
    wait(lambda: all(g.presence._table._forbears_until < time.monotonic() for g in guests), "the dead are found again")
    assert [guest.told["x"] for guest in guests] == [[], [], []]
    guests.pop().die()
    party.guests.pop()
    del everybody["2"]
    party.wait_states("x", everybody)


def test_a_process_that_has_ended_leaves_its_members_for_their_grace_time(party: Party) -> None:
    one, two = party.guest(), party.guest()
    know(one.bus, two.bus)
    one.watch("x")
    two.presence.join("a", "x", "ann", "1")
    two.presence.join("b", "x", "bob", "1")
    party.wait_states("x", {"ann": [1], "bob": [1]}, one)
    two.presence.drain(0.0)
    for client in ("a", "b"):
        two.presence.lose(client)
    two.presence.stop()
    one.presence.join("c", "x", "ann", "2")
    party.wait_states("x", {"ann": [1, 2], "bob": [1]}, one)
    sql = "SELECT count(*) FROM socketio_pg.presence_process WHERE expires_at > now() + interval '20 seconds'"
    assert party.database.sql(sql) == [(1,)]
    party.expire(two)
    party.wait_states("x", {"ann": [2]}, one)
    assert one.told["x"].count("left ann") == 0


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(2, 8))])
def test_random_changes_with_lost_messages(party: Party, seed: int) -> None:
    """Also while processes cannot hear each other, and with more members than clients are told."""
    chance = random.Random(seed)
    guests = [party.guest(most=chance.choice((3, 100))) for _ in range(3)]
    know(*(guest.bus for guest in guests))
    model: dict[tuple[str, str], tuple[int, str, int]] = {}
    for guest in guests:
        guest.watch("x")
    for number in range(150):
        at = chance.randrange(len(guests))
        guest = guests[at]
        client = f"{at}-{chance.randrange(6)}"
        action = chance.random()
        if action < 0.6:
            key = chance.choice(("ann", "bob", "__proto__", "constructor", "dan"))
            guest.presence.join(client, "x", key, str(number))
            model[client, "x"] = (at, key, number)
        elif action < 0.85:
            guest.presence.leave(client, "x")
            model.pop((client, "x"), None)
        elif action < 0.9:
            guest.end.up = not guest.end.up
            if guest.end.up:
                guest.end.restore()
        elif action < 0.93:
            party.database.cluster.terminate_backends("socketio_pg presence")
        else:
            green.sleep(chance.random() / 20)
    for guest in guests:
        if not guest.end.up:
            guest.end.restore()
    expected: dict[str, list[Any]] = {}
    for _, key, state in model.values():
        expected.setdefault(key, []).append(state)

    def agrees(guest: Any) -> bool:
        watcher = guest.watchers["x"]
        if watcher.count != len(expected):
            return False
        found = guest.presence.members("x")
        return {one["key"]: sorted(m["state"] for m in one["metas"]) for one in found} == {
            key: sorted(states) for key, states in expected.items()
        } and (watcher.members is None or watcher.members == {one["key"]: one for one in found})

    wait(lambda: all(map(agrees, guests)), "all know the members")
    wait(lambda: sorted(party.rows("x"), key=str) == sorted(
        ((key, state) for key, states in expected.items() for state in states), key=str
    ), "so does the database")  # fmt: skip


def test_each_event_is_observed_once_and_announced_in_the_order_of_the_commits(database: LogDatabase) -> None:
    """Two processes write the same people at the same time: the database decides who was the first and the last."""
    with contextlib.closing(Party(database)) as party:
        party.announce = "presence:events"
        guests = [party.guest(), party.guest()]
        know(guests[0].bus, guests[1].bus)
        seen: list[tuple[str, str | None]] = []
        for guest in guests:
            guest.presence.observe(lambda event, channel, key: seen.append((event, key)), members=lambda: True)
        choose = random.Random(5)
        for _ in range(40):
            guest = choose.choice(guests)
            client = f"{guests.index(guest)}{choose.choice('ab')}"
            if guest.presence.get(client, "once") is None:
                guest.presence.join(client, "once", choose.choice(("ann", "bob")), "1")
            else:
                guest.presence.leave_all(client)
            green.sleep(choose.choice((0.0, 0.0, 0.03)))
        for guest in guests:
            for client in ("0a", "0b", "1a", "1b"):
                guest.presence.leave_all(client)
        wait(lambda: party.rows("once") == [], "all have left")
        wait(lambda: seen.count(("occupied", None)) == seen.count(("vacated", None)) > 0, "it is vacated")
        for key in ("ann", "bob"):
            wait(lambda: seen.count(("joined", key)) == seen.count(("left", key)) > 0, "it has left")  # noqa: B023
        # The log has the same events, those of each member and of the channel in turn.
        announced = [
            (body["event"], body.get("key"))
            for (body,) in database.sql(
                "SELECT payload FROM socketio_pg.outbox WHERE channel = 'presence:events' ORDER BY id"
            )
        ]
        assert sorted(announced, key=str) == sorted(seen, key=str)
        for pair in (("occupied", "vacated"), ("joined", "left")):
            for key in {key for event, key in announced if event in pair}:
                turns = [event for event, of in announced if event in pair and of == key]
                assert turns == list(pair) * (len(turns) // 2)
    database.sql("TRUNCATE socketio_pg.presence_member, socketio_pg.presence_process, socketio_pg.presence_channel")
