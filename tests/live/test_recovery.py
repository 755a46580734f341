"""Connection state recovery with the stock JavaScript client: docs/recovery.md."""

import contextlib
import json
import random
import threading
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from tests.support.log import Log, wait_installed
from tests.support.postgres import Cluster
from tests.support.proxy import Proxy
from tests.support.recovery import RecoveringClient
from tests.support.server import ServerProcess
from tests.support.swarm import Swarm


@pytest.fixture(scope="module")
def first(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "recovery", AUTO_INIT="1", DURABLE_CHANNELS="*")
    try:
        wait_installed(made)
        yield made
    finally:
        made.server.close()


def test_a_short_cut_is_recovered(first: Log, channel: str) -> None:
    client = RecoveringClient(first.server.url)
    try:
        assert client.hello["recovery"] == {"recovered": False}
        client.subscribe(channel)
        first.publish(channel, 1, 3)
        assert client.numbers(3) == [1, 2, 3]
        # An ephemeral message has no offset, is not recovered, and leaves the stored offset as it is.
        ephemeral = {"channel": channel, "ephemeral": True, "echo": True}
        assert client.call("publish", ephemeral | {"payload": [99]}) == {"ok": True, "channel": channel}
        assert client.numbers(1) == [99]
        client.send({"desert": True})
        first.publish(channel, 4, 6)
        hello = client.connected()
        assert hello["recovered"] is True
        assert hello["sid"] == client.hello["sid"]
        assert hello["pid"] == client.hello["pid"]
        assert client.numbers(3) == [4, 5, 6]
        first.publish(channel, 7, 7)
        assert client.numbers(1) == [7]
    finally:
        client.close()


def test_a_replay_after_a_snapshot_is_not_recovered_halfway(first: Log, channel: str) -> None:
    """The position of a message says nothing as long as the replay skips some; afterwards the session is as others."""
    client = RecoveringClient(first.server.url)
    try:
        with contextlib.closing(psycopg2.connect(first.url)) as blocking, blocking.cursor() as relay:
            relay.execute("SELECT FROM socketio_pg.head FOR UPDATE")  # the relay waits
            first.publish(channel, 1, 2)
            [(token,)] = first.sql("SELECT socketio_pg.snapshot()")
            first.publish(channel, 3, 3)
            client.subscribe(channel, since=token)
            client.cut(first.server.url)
            hello = client.connected()
            assert hello["recovery"] == {"recovered": False, "reason": "replaying"}
            client.subscribe(channel, since=token)
            blocking.rollback()
        assert client.numbers(1) == [3]
        first.publish(channel, 4, 4)
        assert client.numbers(1) == [4]
        client.cut(first.server.url)
        assert client.connected()["recovered"] is True
        first.publish(channel, 5, 5)
        assert client.numbers(1) == [5]
    finally:
        client.close()


def test_a_client_that_has_not_got_the_reason_gets_it_when_it_returns(first: Log, channel: str) -> None:
    with Swarm("127.0.0.1", first.server.port) as swarm:

        def connect(auth: dict[str, object]) -> tuple[str, dict[str, Any]]:
            """Connect. Return the pid, and the field ``recovery`` of `server_hello`."""
            [client] = swarm.open(1)
            client.auth = auth
            swarm.run_until(lambda: bool(client.events("server_hello")))
            return json.loads(client.packets[0][1:])["pid"], client.events("server_hello")[0]["recovery"]

        [client] = swarm.open(1)
        client.auth = {"recovery": True}
        swarm.run_until(lambda: client.connected)
        pid = json.loads(client.packets[0][1:])["pid"]
        with contextlib.closing(psycopg2.connect(first.url)) as blocking, blocking.cursor() as relay:
            relay.execute("SELECT FROM socketio_pg.head FOR UPDATE")  # the relay waits
            first.publish(channel, 1, 1)
            [(token,)] = first.sql("SELECT socketio_pg.snapshot()")
            client.emit("subscribe", {"channel": channel, "since": token})
            swarm.run_until(lambda: bool(client.events("subscribed")))
            offset = json.loads(client.packets[-1][1:])[-1]
            former = {"recovery": True, "pid": pid, "offset": offset}
            # The client gives the first attempts up before their answers arrive: it would use another pid otherwise.
            answers = [connect(former) for _ in range(3)]
            blocking.rollback()
        assert [recovery for _, recovery in answers] == [{"recovered": False, "reason": "replaying"}] * 3
        assert len({pid, *(new for new, _ in answers)}) == 4
        assert connect({"recovery": True, "pid": answers[-1][0]})[1] == {"recovered": True}


@pytest.fixture
def second(first: Log) -> Iterator[ServerProcess]:
    """Another node."""
    made = ServerProcess(first.url, DURABLE_CHANNELS="*", DRAIN_SECONDS="0.2")
    try:
        yield made
    finally:
        made.close()


def test_a_client_that_comes_back_in_a_loop_misses_nothing(first: Log, second: ServerProcess, channel: str) -> None:
    """50 times, as fast as it can, between two nodes, with two channels: nothing is missed, nothing comes twice."""
    client = RecoveringClient(first.server.url)
    other = f"{channel} too"
    try:
        client.subscribe(channel)
        client.subscribe(other)
        for number in range(50):
            if number % 2:
                client.send({"desert": True, "url": (second.url, first.server.url)[number // 2 % 2]})
            else:
                client.cut((second.url, first.server.url)[number // 2 % 2])
            first.publish((channel, other)[number % 2], 10 * number, 10 * number + 9)
            hello = client.connected()
            assert hello["recovered"], (number, hello)
            assert hello["sid"] == client.hello["sid"]
        assert client.numbers(500) == list(range(500))
        assert not [line for line in client.lines if line["event"] == "event"]
    finally:
        client.close()


def test_a_session_survives_kill_of_its_node(first: Log, second: ServerProcess, channel: str) -> None:
    client = RecoveringClient(second.url)
    try:
        client.subscribe(channel, filter={"0": {"gte": 3}})
        first.publish(channel, 1, 4)
        assert client.numbers(2) == [3, 4]
        client.send({"url": first.server.url})
        second.kill()
        first.publish(channel, 1, 6)
        hello = client.connected()
        assert hello["recovered"], hello
        assert client.numbers(4) == [3, 4, 5, 6]
        first.publish(channel, 1, 7)
        assert client.numbers(5) == [3, 4, 5, 6, 7]
    finally:
        client.close()


def test_sessions_survive_a_restart_of_all_nodes(first: Log, channel: str) -> None:
    client = RecoveringClient(first.server.url)
    quiet = RecoveringClient(first.server.url)
    try:
        client.subscribe(channel)
        quiet.subscribe(channel)
        first.publish(channel, 1, 1)
        assert client.numbers(1) + quiet.numbers(1) == [1, 1]
        first.server.stop()
        first.publish(channel, 2, 3)
        first.server.start()
        for one in (client, quiet):
            hello = one.connected()
            assert hello["recovered"], hello
            assert one.numbers(2) == [2, 3]
    finally:
        client.close()
        quiet.close()


def test_a_kicked_client_gets_a_new_session(first: Log, second: ServerProcess, channel: str) -> None:
    client = RecoveringClient(first.server.url)
    try:
        client.subscribe(channel)
        client.send({"disconnect": True})
        client.next(event="disconnect")
        client.send({"url": second.url, "connect": True})
        hello = client.connected()
        assert hello["recovery"] == {"recovered": False, "reason": "unknown_session"}
        assert hello["sid"] != client.hello["sid"]
        # The client still sends the offset of the former session with the new pid.
        client.subscribe(channel)
        client.cut()
        assert client.connected()["recovered"]
    finally:
        client.close()


def test_unknown_and_foreign_pids_begin_a_new_session(first: Log) -> None:
    for pid in ("", "x", "1.2", "a" * 2000, 5, None, {"pid": "x"}):
        client = RecoveringClient(first.server.url, auth={"pid": pid})
        try:
            expected = {"recovered": False} | ({} if pid is None else {"reason": "invalid_pid"})
            assert client.hello["recovery"] == expected
        finally:
            client.close()


@pytest.mark.nightly
def test_sessions_move_between_the_workers_of_nodes_while_the_database_fails(newest_pg: Cluster, channel: str) -> None:
    """Two nodes of two workers: connections break, replays begin, and all sessions of the database are terminated."""
    settings = {"DURABLE_CHANNELS": "*"}
    log = Log(newest_pg, "recovery_workers", "-w", "2", AUTO_INIT="1", **settings)
    other = ServerProcess(log.url, "-w", "2", DRAIN_SECONDS="0.2", **settings)
    clients = []
    try:
        wait_installed(log)
        clients = [RecoveringClient(log.server.url) for _ in range(4)]
        for client in clients:
            client.subscribe(channel)
        for number in range(10):
            for index, client in enumerate(clients):
                client.send(
                    {("cut", "desert")[index % 2]: True, "url": (log.server.url, other.url)[(number + index) % 2]}
                )
            log.publish(channel, 10 * number, 10 * number + 9, 1000)
            for client in clients:
                hello = client.connected()
                assert hello["recovered"], hello
            if number % 3 == 0:
                log.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
                other.wait_ready()
                log.server.wait_ready()
        for client in clients:
            assert client.numbers(100) == list(range(100))
    finally:
        for client in clients:
            client.close()
        other.close()
        log.server.close()


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_missed_and_nothing_comes_twice(first: Log, second: ServerProcess, channel: str, seed: int) -> None:
    """Connections break at any moment, again while the client comes back, with small and large messages."""
    rng = random.Random(seed)
    pad = rng.choice([0, 0, 2000, 20_000])
    client = RecoveringClient(first.server.url)
    counts = {f"{channel} {number}": 0 for number in range(4)}
    stopping = threading.Event()

    def publish() -> None:
        choice = random.Random(seed)
        while not stopping.wait(choice.choice([0, 0.005, 0.05])):
            one, more = choice.choice(list(counts)), choice.randint(1, 20)
            first.publish(one, counts[one], counts[one] + more - 1, pad)
            counts[one] += more

    publishing = threading.Thread(target=publish)
    try:
        for one in counts:
            client.subscribe(one)
        publishing.start()
        for _ in range(30):
            stopping.wait(rng.choice([0, 0, 0.01, 0.1, 0.3]))
            client.send({rng.choice(["cut", "desert"]): True, "url": rng.choice([first.server.url, second.url])})
            if rng.random() < 0.5:
                stopping.wait(rng.choice([0, 0.02, 0.05]))
                client.send({"cut": True})
        stopping.set()
        publishing.join()
        got: dict[str, list[int]] = {one: [] for one in counts}
        positions = []
        while any(len(got[one]) < counts[one] for one in counts):
            line = client.next()
            assert line["event"] != "connect" or line["recovered"], client.next(event="server_hello")
            if line["event"] == "event":
                got[line["argument"]["channel"]].append(line["argument"]["payload"][0])
                positions.append(line["argument"]["position"])
        assert got == {one: list(range(counts[one])) for one in counts}
        assert positions == sorted(positions)
    finally:
        stopping.set()
        client.close()


def test_a_replay_goes_on_where_the_connection_broke(first: Log, second: ServerProcess, channel: str) -> None:
    """Live messages of one channel and the replay of another one, which is broken off several times."""
    live, replayed = channel, f"{channel} too"
    first.publish(replayed, 0, 1999, 1000)
    client = RecoveringClient(first.server.url)
    try:
        client.subscribe(live)
        client.subscribe(replayed, history=1000)
        got: dict[str, list[int]] = {live: [], replayed: []}
        for number in range(4):
            first.publish(live, 10 * number, 10 * number + 9)
            while len(got[replayed]) < 200 * (number + 1) or len(got[live]) < 5 * (number + 1):
                argument = client.next(event="event")["argument"]
                got[argument["channel"]].append(argument["payload"][0])
            client.cut((second.url, first.server.url)[number % 2])
            assert client.connected()["recovered"]
        while len(got[replayed]) < 1000 or len(got[live]) < 40:
            argument = client.next(event="event")["argument"]
            got[argument["channel"]].append(argument["payload"][0])
        assert got == {live: list(range(40)), replayed: list(range(1000, 2000))}
    finally:
        client.close()


def test_a_session_that_another_node_has_changed_is_not_given_back_as_it_was(
    first: Log, newest_pg: Cluster, channel: str
) -> None:
    """A node that hears nothing does not notice that another one has taken a session over."""
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(contextlib.closing(Proxy(newest_pg.socket_path)))
        heard = f"postgresql://postgres@127.0.0.1:{proxy.port}/recovery"
        deaf = ServerProcess(first.url, LISTEN_DATABASE_URL=heard, DURABLE_CHANNELS="*", DRAIN_SECONDS="0.2")
        stack.callback(deaf.close)
        client = RecoveringClient(deaf.url)
        stack.callback(client.close)
        proxy.black_hole()
        client.cut(first.server.url)
        assert client.connected()["recovered"] is True
        client.subscribe(channel)
        first.publish(channel, 1, 1)
        assert client.numbers(1) == [1]
        client.cut(deaf.url)
        # With the session as this node had it, the client would wait for messages of a channel that is not in it.
        assert client.connected()["recovery"] == {"recovered": False, "reason": "database_unavailable"}
