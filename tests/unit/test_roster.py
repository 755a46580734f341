"""The roster of a channel: a model of processes, a database, lossy messages and clients, with random operations."""

import itertools
import random
from collections import deque

import orjson
import pytest

from socketio_pg.presence.roster import ANONYMOUS, MAX_METAS, Change, Link, Meta, Roster, to_body, to_change
from tests.support.nightly import sampled
from tests.support.watcher import Watcher

OWN, OTHERS = "own", ("p", "q", "r")


class Database:
    """One channel: refs with their connections, and its version. 0: it has no row."""

    def __init__(self) -> None:
        self.rows: dict[str, Meta] = {}
        self.version = 0
        self._next = itertools.count(100)

    def write(self, process: str, put: list[Meta], gone: list[str]) -> Change:
        gone = [ref for ref in gone if ref in self.rows and self.rows[ref].process == process]
        for meta in put:
            self.rows[meta.ref] = meta
        for ref in gone:
            del self.rows[ref]
        return Change(process, self._link(), put, gone)

    def sweep(self, sweeper: str, process: str) -> Change:
        self.rows = {ref: meta for ref, meta in self.rows.items() if meta.process != process}
        return Change(sweeper, self._link(), dead=[process])

    def _link(self) -> Link:
        previous, self.version = self.version, next(self._next) if self.rows else 0
        return Link(previous, self.version)


class World:
    """A roster of the process ``own``, and messages of other processes on their way to it: in order for each sender."""

    def __init__(self, seed: int, most: int) -> None:
        self.random = random.Random(seed)
        self.database = Database()
        self.roster = Roster(most)
        self.coming: dict[str, deque[Change]] = {process: deque() for process in OTHERS}
        self.clients: list[Watcher] = []
        self.numbers = itertools.count()
        self.reading = False
        self.snapshot: tuple[int, list[Meta]] | None = None

    def step(self) -> None:
        action = self.random.choices(
            (self.write, self.write_own, self.deliver, self.lose, self.read, self.sweep, self.watch, self.tell),
            (10, 5, 12, 1, 3, 1, 3, 5),
        )[0]
        action()

    def meta(self, process: str) -> Meta:
        number = next(self.numbers)
        found = [one for one in self.database.rows.values() if one.process == process]
        if found and self.random.random() < 0.4:
            old = self.random.choice(found)
            return Meta(old.ref, old.key, old.client, str(number), old.joined_at, process)
        elsewhere = [one for one in self.database.rows.values() if one.process not in (process, OWN)]
        if elsewhere and process != OWN and self.random.random() < 0.1:
            old = self.random.choice(elsewhere)  # a recovered session
            return Meta(old.ref, old.key, old.client, old.state, old.joined_at, process)
        key = self.random.choice(("a", "b", "c", "__proto__", f"{ANONYMOUS}a"))
        return Meta(f"ref{number}", key, f"sid{number}", "null", self.random.randrange(10**12), process)

    def write(self) -> None:
        process = self.random.choice(OTHERS)
        put = {one.ref: one for one in (self.meta(process) for _ in range(self.random.randrange(3)))}
        gone = [
            one.ref
            for one in self.database.rows.values()
            if one.process == process and one.ref not in put and self.random.random() < 0.3
        ]
        if put or gone:
            self.send(process, self.database.write(process, list(put.values()), gone))

    def write_own(self) -> None:
        own = [one.ref for one in self.database.rows.values() if one.process == OWN]
        if own and self.random.random() < 0.5:
            gone = self.random.choice(own)
            self.roster.remove(gone)
            self.roster.apply(Change(OWN, self.database.write(OWN, [], [gone]).link))
        else:
            meta = self.meta(OWN)
            self.roster.put(meta)
            self.roster.apply(Change(OWN, self.database.write(OWN, [meta], []).link))

    def send(self, process: str, change: Change) -> None:
        self.coming[process].append(to_change(process, orjson.loads(orjson.dumps(to_body(change)))))

    def deliver(self) -> None:
        process = self.random.choice(OTHERS)
        if self.coming[process]:
            self.roster.apply(self.coming[process].popleft())

    def lose(self) -> None:
        process = self.random.choice(OTHERS)
        if self.coming[process]:
            self.coming[process].popleft()

    def read(self) -> None:
        """Read the database, in three steps."""
        if not self.reading:
            self.reading = True
            self.roster.begin_read()
        elif self.snapshot is None:
            rows = [one for one in self.database.rows.values() if one.process != OWN]
            self.snapshot = self.database.version, rows
        else:
            self.roster.load(*self.snapshot, OWN)
            self.snapshot = None
            self.reading = False

    def sweep(self) -> None:
        dead = self.random.choice(OTHERS)
        if any(one.process == dead for one in self.database.rows.values()):
            sweeper = self.random.choice(OTHERS)
            self.send(sweeper, self.database.sweep(sweeper, dead))

    def watch(self) -> None:
        if self.roster.known is not None and len(self.clients) < 4:
            if not self.clients:
                self.roster.begin()
            self.clients.append(Watcher(self.roster.show()))
        elif self.clients and self.random.random() < 0.5:
            self.clients.pop(self.random.randrange(len(self.clients)))

    def tell(self) -> None:
        difference = self.roster.difference()
        if difference is not None:
            for client in self.clients:
                if difference.restarts:
                    client.replace(self.roster.show())
                else:
                    client.apply(difference.to_wire())

    def settle(self) -> None:
        for process in OTHERS:
            while self.coming[process]:
                self.deliver_of(process)
        if self.roster.known != self.database.version or self.roster.incomplete:
            self.reading, self.snapshot = False, None
            for _ in range(3):
                self.read()
        self.tell()

    def deliver_of(self, process: str) -> None:
        self.roster.apply(self.coming[process].popleft())

    def check(self) -> None:
        expected: dict[str, set[tuple[str, str]]] = {}
        for one in self.database.rows.values():
            expected.setdefault(one.key, set()).add((one.ref, one.state))
        found = {one["key"]: one for one in orjson.loads(orjson.dumps(self.roster.members()))}
        assert {key: {(m["ref"], str(m["state"]).replace("None", "null")) for m in one["metas"]}
                for key, one in found.items()} == expected  # fmt: skip
        assert all(one.get("anonymous", False) is key.startswith(ANONYMOUS) for key, one in found.items())
        assert self.roster.count == len(expected)
        for client in self.clients:
            assert (client.version, client.count) == (self.roster.version, self.roster.count)
            assert client.members == (None if self.roster.many else found)
            assert self.roster.many or client.members is not None


@pytest.mark.parametrize("most", [2, 100])
@pytest.mark.parametrize("seed", sampled(range(60), lambda seed: seed < 20))
def test_clients_have_the_members_of_the_database(seed: int, most: int) -> None:
    world = World(seed, most)
    for _ in range(8):
        for _ in range(world.random.randrange(40)):
            world.step()
        world.settle()
        world.check()


def test_a_second_connection_is_no_join_and_one_that_closes_no_leave() -> None:
    roster = Roster(10)
    roster.load(0, [], OWN)
    roster.begin()
    roster.put(Meta("1", "ann", "s1", "null", 1))
    difference = roster.difference()
    assert difference is not None
    assert difference.members is not None
    assert [list(one) for one in difference.members] == [["ann"], [], []]
    for number in range(2):
        if number:
            roster.remove("1")
        else:
            roster.put(Meta("2", "ann", "s2", "null", 2))
        difference = roster.difference()
        assert difference is not None
        assert difference.members is not None
        assert [list(one) for one in difference.members] == [[], ["ann"], []]
    # Within one moment a connection takes the place of another one, or comes and goes.
    roster.put(Meta("3", "ann", "s3", "null", 3))
    roster.remove("2")
    roster.put(Meta("4", "bob", "s4", "null", 3))
    roster.remove("4")
    difference = roster.difference()
    assert difference is not None
    assert orjson.loads(orjson.dumps(difference.to_wire()))["updated"][0]["metas"][0]["ref"] == "3"
    assert difference.count == 1
    assert roster.difference() is None


def test_a_client_that_was_shown_a_member_between_two_differences_is_told_that_it_has_left() -> None:
    roster = Roster(10)
    roster.load(0, [], OWN)
    roster.begin()
    client = Watcher(roster.show())
    roster.put(Meta("1", "ann", "s1", "null", 1))
    late = Watcher(roster.show())
    assert late.members is not None
    assert list(late.members) == ["ann"]
    roster.remove("1")
    difference = roster.difference()
    assert difference is not None
    for one in (client, late):
        one.apply(difference.to_wire())
        assert one.members == {}


def test_many_connections_of_a_member_are_cut_off() -> None:
    roster = Roster(10)
    for number in range(MAX_METAS + 5):
        roster.put(Meta(f"{number:02}", "ann", "sid", "null", 0))
    assert [meta.ref for meta in roster.visible("ann")] == [f"{number:02}" for number in range(MAX_METAS)]
    assert roster.count == 1


def test_members_that_the_database_has_lost_are_kept_for_a_while() -> None:
    roster = Roster(10)
    roster.load(7, [Meta("1", "ann", "s1", "null", 1, "p")], OWN)
    roster.load(0, [], OWN, keep=True)
    assert roster.count == 1
    roster.load(0, [], OWN)
    assert roster.count == 0
