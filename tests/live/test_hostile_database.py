"""A database login without rights attacks what servers tell each other: it can neither read, forge nor repeat it."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
import redis as redis_client
import requests

from socketio_pg import PostgresManager
from socketio_pg.core.channels import BELL_CHANNEL, LOG_CHANNEL, PERMISSIONS_CHANNEL, QUEUE_CHANNEL
from socketio_pg.core.errors import ConfigurationError
from socketio_pg.doctor import checks_log
from tests.support.cli import run
from tests.support.clients import SocketClient
from tests.support.cluster import APP, CLUSTER_KEY, Cell, Member
from tests.support.metrics import TOKEN, scrape, wait_for
from tests.support.nodes import Nodes
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster, cluster, in_thread
from tests.support.redis import Redis
from tests.support.server import WORKERS, ServerProcess


class Stranger:
    """A database login without any grant, which listens to all of the servers' channels."""

    def __init__(self, nodes: Nodes) -> None:
        nodes.sql("DROP ROLE IF EXISTS stranger")
        nodes.sql("CREATE ROLE stranger LOGIN")
        self.url = nodes.url.replace("postgres@", "stranger@")
        self._connection = psycopg2.connect(self.url)
        self._connection.autocommit = True
        self._cursor = self._connection.cursor()
        for channel in (LOG_CHANNEL, BELL_CHANNEL, QUEUE_CHANNEL, PERMISSIONS_CHANNEL):
            self._cursor.execute(f"LISTEN {channel}")

    def notify(self, channel: str, *texts: str) -> None:
        self._cursor.execute("SELECT pg_notify(%s, t) FROM unnest(%s) AS t", [channel, list(texts)])

    def heard(self) -> list[tuple[str, str]]:
        """Return the notifications since the last call, without its own."""
        self._cursor.execute("SELECT 1")
        heard = [
            (n.channel, n.payload) for n in self._connection.notifies if n.pid != self._connection.info.backend_pid
        ]
        self._connection.notifies.clear()
        return heard

    def record(self, channel: str) -> list[str]:
        """Return the texts on ``channel``, once there are any."""
        found: list[str] = []

        def recorded() -> bool:
            found.extend(text for heard, text in self.heard() if heard == channel)
            return bool(found)

        until(recorded, "a text was recorded")
        return found

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(scope="module")
def nodes(newest_pg: Cluster) -> Iterator[Nodes]:
    """Two nodes with a log and a queue on PostgreSQL."""
    settings = {"MESSAGE_QUEUE": "postgres", "METRICS_TOKEN": TOKEN, "TRUSTED_PROXIES": "0"}
    with contextlib.closing(Nodes(newest_pg, "hostile", 2, balanced=False, app=APP, **settings)) as made:
        made.wait_leader()
        yield made


@pytest.fixture
def stranger(nodes: Nodes) -> Iterator[Stranger]:
    with contextlib.closing(Stranger(nodes)) as made:
        yield made


@pytest.fixture
def subscribers(nodes: Nodes, channel: str) -> Iterator[list[SocketClient]]:
    """A subscriber on each node."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(SocketClient(node.url)) for node in nodes.nodes]
        for client in clients:
            assert client.call("subscribe", {"channel": channel})["ok"] is True
        yield clients


@pytest.fixture
def members(nodes: Nodes) -> Iterator[list[Member]]:
    """A member of the room on each node."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Member(node.url, "room")) for node in nodes.nodes]


def emit(node: ServerProcess, data: Any) -> None:
    body = {"data": data, "room": "room"}
    assert requests.post(f"{node.url}/emit", json=body, timeout=PATIENCE).text == "done"


def refused(nodes: Nodes, reason: str) -> float:
    return sum(scrape(node)[f'refused_messages_total{{reason="{reason}"}}'] for node in nodes.nodes)


# -- the log -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["next position", "far ahead", "wrong epoch", "no batch"])
def test_a_forged_batch_of_the_log_changes_nothing(
    nodes: Nodes, stranger: Stranger, subscribers: list[SocketClient], channel: str, what: str
) -> None:
    nodes.publish(channel, 1, 1)
    position = max(client.next("event")["position"] for client in subscribers)
    [(epoch,)] = nodes.sql("SELECT epoch::text FROM socketio_pg.head")
    next_position = position + (1_000_000 if what == "far ahead" else 1)
    epoch = "00000000-0000-0000-0000-000000000000" if what == "wrong epoch" else epoch
    line = f'{channel}\t2026-01-01T00:00:00.000000Z\t[666, "FORGED"]'
    before = refused(nodes, "unsealed")
    stranger.notify(LOG_CHANNEL, "?" if what == "no batch" else f"{epoch} {next_position} {next_position}\n{line}")
    until(lambda: refused(nodes, "unsealed") >= before + 2, "both nodes have refused it")
    nodes.publish(channel, 2, 3)
    for client in subscribers:
        assert [client.next("event")["payload"][0] for _ in range(2)] == [2, 3]
        assert client.pending("event") == client.pending("gap") == 0
    for node in nodes.nodes:
        with SocketClient(node.url) as late:
            assert late.call("subscribe", {"channel": channel, "history": 10})["ok"] is True
            assert [late.next("event")["payload"][0] for _ in range(3)] == [1, 2, 3]


def test_a_recorded_batch_of_the_log_is_not_delivered_again(
    nodes: Nodes, stranger: Stranger, subscribers: list[SocketClient], channel: str
) -> None:
    nodes.publish(channel, 1, 1)
    for text in stranger.record(LOG_CHANNEL):
        stranger.notify(LOG_CHANNEL, text)
    nodes.publish(channel, 2, 2)
    for client in subscribers:
        assert [client.next("event")["payload"][0] for _ in range(2)] == [1, 2]
        assert client.pending("event") == client.pending("gap") == 0


def test_a_stranger_reads_nothing(
    nodes: Nodes, stranger: Stranger, members: list[Member], subscribers: list[SocketClient], channel: str
) -> None:
    nodes.sql("SELECT socketio_pg.publish(%s, to_jsonb(repeat('secret ', 500)))", channel)
    nodes.sql("SELECT socketio_pg.recheck('secret channel')")
    emit(nodes.nodes[0], "secret data")
    for client in subscribers:
        client.next("event")
    for member in members:
        assert member.next("news") == ("secret data",)
    heard: list[tuple[str, str]] = []

    def heard_both() -> bool:
        heard.extend(stranger.heard())
        return {name for name, _ in heard} >= {LOG_CHANNEL, QUEUE_CHANNEL}

    until(heard_both, "the stranger's session has the notifications, too")
    assert PERMISSIONS_CHANNEL not in {name for name, _ in heard}
    for name, text in heard:
        assert text.startswith("sealed1 ") or name == BELL_CHANNEL, text
        assert "secret" not in text
        assert channel not in text
        assert name != BELL_CHANNEL or not text


def test_the_doctor_reports_what_nodes_refuse(nodes: Nodes, stranger: Stranger) -> None:
    stranger.notify(LOG_CHANNEL, "anything")
    # The nodes renew their rows every second (in production every ten seconds).
    until(lambda: nodes.sql("SELECT 1 FROM socketio_pg.nodes WHERE 'unsealed' = ANY (refused)"), "a node has noted it")
    with contextlib.closing(psycopg2.connect(nodes.url)) as connection:
        [finding] = [found for found in in_thread(list, checks_log.refused(connection)) if "not sealed" in found.found]
    assert finding.level == "warning"


def test_a_stranger_cannot_read_or_replace_the_key(nodes: Nodes, stranger: Stranger) -> None:
    for statement in (
        "SELECT * FROM socketio_pg.cluster_key",
        "INSERT INTO socketio_pg.cluster_key (key) VALUES (sha256(''))",
        "SELECT socketio_pg.rotate_cluster_key()",
        "SELECT socketio_pg.recheck()",
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            stranger._cursor.execute(statement)


def test_a_flood_of_garbage_costs_a_look_in_100_ms(
    nodes: Nodes, stranger: Stranger, subscribers: list[SocketClient], channel: str
) -> None:
    def reads() -> int:
        # A session publishes its counts with a statement, if it did not for a second; until then, those of earlier
        # tests are missing. Each node reads once because of this text.
        time.sleep(1.2)
        texts = refused(nodes, "unsealed")
        stranger.notify(LOG_CHANNEL, "garbage")
        until(lambda: refused(nodes, "unsealed") >= texts + 2, "both nodes have refused it")
        time.sleep(0.2)
        [(count,)] = nodes.sql(
            "SELECT seq_scan + coalesce(idx_scan, 0) FROM pg_stat_user_tables WHERE relname = 'head'"
        )
        return int(count)

    before, began = reads(), time.monotonic()
    for start in range(0, 30_000, 500):
        stranger.notify(LOG_CHANNEL, *(f"garbage {number}" for number in range(start, start + 500)))
        time.sleep(0.02)
    nodes.publish(channel, 1, 1)
    for client in subscribers:
        assert client.next("event")["payload"][0] == 1
    # Each of the two nodes looks ten times a second. (It was 60 times.)
    found, took = reads() - before, time.monotonic() - began
    print(f"{found} reads in {took:.1f} s")
    assert found < 25 * took + 30
    for node in nodes.nodes:
        assert node.log.count("did not seal it") < took + 30


# -- emits -------------------------------------------------------------------------------------------------------------

FORGED = '{"method": "emit", "event": "news", "data": "forged", "namespace": "/", "room": "room", "host_id": "x"}'


def test_a_forged_emit_is_refused(nodes: Nodes, stranger: Stranger, members: list[Member]) -> None:
    before = refused(nodes, "unsealed")
    stranger.notify(QUEUE_CHANNEL, FORGED, f"0123 1/1 {FORGED}")
    until(lambda: refused(nodes, "unsealed") >= before + 4, "both nodes have refused both")
    emit(nodes.nodes[0], "genuine")
    assert [(member.next("news"), member.pending("news")) for member in members] == [(("genuine",), 0)] * 2


@pytest.mark.parametrize("size", [10, 50_000])
def test_a_recorded_emit_is_not_delivered_again(
    nodes: Nodes, stranger: Stranger, members: list[Member], size: int
) -> None:
    stranger.heard()
    emit(nodes.nodes[0], "x" * size)
    assert [member.next("news") for member in members] == [("x" * size,)] * 2
    texts = stranger.record(QUEUE_CHANNEL)
    before = refused(nodes, "replayed")
    stranger.notify(QUEUE_CHANNEL, *texts)
    # On another channel it is not genuine either.
    stranger.notify(LOG_CHANNEL, *texts)
    until(lambda: refused(nodes, "replayed") >= before + 2 * len(texts), "both nodes have refused all parts")
    emit(nodes.nodes[0], "next")
    assert [(member.next("news"), member.pending("news")) for member in members] == [(("next",), 0)] * 2


def test_a_recorded_emit_is_not_delivered_by_a_node_that_has_just_started(nodes: Nodes, stranger: Stranger) -> None:
    stranger.heard()
    emit(nodes.nodes[0], "recorded")
    texts = stranger.record(QUEUE_CHANNEL)
    time.sleep(2.0)  # the age from which a new node refuses it
    nodes.nodes[1].restart()
    with Member(nodes.nodes[1].url, "room") as member:
        stranger.notify(QUEUE_CHANNEL, *texts)
        wait_for(nodes.nodes[1], lambda samples: samples['refused_messages_total{reason="stale"}'] >= len(texts))
        emit(nodes.nodes[0], "next")
        assert (member.next("news"), member.pending("news")) == (("next",), 0)


def test_a_program_without_the_right_to_read_the_key_cannot_emit(nodes: Nodes, members: list[Member]) -> None:
    stranger = Stranger(nodes)
    writer = PostgresManager(stranger.url, write_only=True)
    with contextlib.closing(stranger):
        with pytest.raises(ConfigurationError, match=r"GRANT SELECT ON socketio_pg\.cluster_key TO stranger") as raised:
            writer.emit("news", 1, room="room")
        nodes.sql(str(raised.value).split("'")[1])
        writer.emit("news", "with the right", room="room")
        assert [member.next("news") for member in members] == [("with the right",)] * 2
    nodes.sql("DROP OWNED BY stranger")


def test_forged_and_recorded_emits_on_redis_are_refused(newest_pg: Cluster) -> None:
    with contextlib.closing(Cell(newest_pg, "redis")) as cell, contextlib.ExitStack() as stack:
        assert cell.redis is not None
        members = [stack.enter_context(Member(node.url, "room")) for node in cell.nodes]
        client = stack.enter_context(contextlib.closing(redis_client.Redis.from_url(cell.redis.url)))
        listener: Any = client.pubsub()  # type: ignore[no-untyped-call]
        stack.callback(listener.close)
        listener.subscribe(QUEUE_CHANNEL)
        everyone = 1 + len(cell.nodes) * int(WORKERS)
        until(lambda: client.publish(QUEUE_CHANNEL, FORGED) == everyone, "all listen")
        cell.emit(0, "once", room="room")
        genuine = next(
            found["data"] for found in listener.listen() if found["type"] == "message" and b"sealed1" in found["data"]
        )
        assert b"once" not in genuine
        client.publish(QUEUE_CHANNEL, genuine)
        cell.emit(0, "next", room="room")
        for member in members:
            assert [member.next("news") for _ in range(2)] == [("once",), ("next",)]
            assert member.pending("news") == 0


# -- two installations -------------------------------------------------------------------------------------------------


def test_two_clusters_on_one_redis_do_not_mix(newest_pg: Cluster, channel: str) -> None:
    """Their databases have the same name, and the operator gave both the same key."""
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(contextlib.closing(Redis()))
        settings = {"LISTEN": "leader", "MESSAGE_QUEUE": redis.url, "CLUSTER_KEY": CLUSTER_KEY}
        both = [
            stack.enter_context(contextlib.closing(Nodes(of, "same", 1, balanced=False, app=APP, **settings)))
            for of in (newest_pg, stack.enter_context(cluster()))
        ]
        members = [stack.enter_context(Member(nodes.server.url, "room")) for nodes in both]
        for member in members:
            assert member.call("subscribe", {"channel": channel})["ok"] is True
        for number, nodes in enumerate(both):
            nodes.sql("SELECT pg_notify(%s, %s)", channel, str(number))
            emit(nodes.server, number)
        for number, member in enumerate(members):
            assert member.next("event")["payload"] == number
            assert member.next("news") == (number,)
        for nodes, member in zip(both, members, strict=True):
            refusal = "refused a text on socketio_pg_queue of another installation: "
            until(lambda nodes=nodes, refusal=refusal: refusal in nodes.server.log, "the other's text is refused")  # type: ignore[misc]
            assert member.pending("event") == member.pending("news") == member.pending("gap") == 0


# -- rotation ----------------------------------------------------------------------------------------------------------


def test_the_key_is_rotated_under_load_without_a_lost_message(
    nodes: Nodes, stranger: Stranger, members: list[Member], channel: str
) -> None:
    ended, sent = threading.Event(), [0]

    def work() -> None:
        while not ended.wait(0.01):
            emit(nodes.nodes[0], sent[0])
            nodes.publish(channel, sent[0], sent[0])
            sent[0] += 1

    def age(seconds: int) -> None:
        nodes.sql("UPDATE socketio_pg.cluster_key SET created_at = created_at - make_interval(secs => %s)", seconds)
        nodes.sql("NOTIFY socketio_pg, 'installed'")  # the nodes read the keys soon

    for member in members:
        assert member.call("subscribe", {"channel": channel})["ok"] is True
    nodes.sql("SELECT 1 FROM socketio_pg.cluster_key")
    age(1000)
    worker = threading.Thread(target=work)
    worker.start()
    try:
        used = {text.split(" ")[2] for text in stranger.record(QUEUE_CHANNEL)}
        nodes.sql("SELECT socketio_pg.rotate_cluster_key()")
        [(rotated,)] = nodes.sql("SELECT clock_timestamp()")
        age(0)
        reads = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle'"
            " AND application_name = 'socketio_pg keys' AND query_start > %s"
        )
        until(lambda: nodes.sql(reads, rotated) == [(2,)], "both nodes have read the new key, as they have in 20 s")
        age(21)
        until(lambda: len({text.split(" ")[2] for text in stranger.record(QUEUE_CHANNEL)} | used) == 2, "a new key")
        count = sent[0]
        until(lambda: sent[0] > count + 30, "the load goes on")
    finally:
        ended.set()
        worker.join()
    for member in members:
        assert [member.next("news") for _ in range(sent[0])] == [(number,) for number in range(sent[0])]
        assert [member.next("event")["payload"][0] for _ in range(sent[0])] == list(range(sent[0]))
        assert member.pending("gap") == 0


@pytest.fixture
def empty(newest_pg: Cluster) -> str:
    """The address of a database without the schema."""
    newest_pg.sql("DROP DATABASE IF EXISTS hostile_empty WITH (FORCE)")
    newest_pg.sql("CREATE DATABASE hostile_empty")
    return newest_pg.url("hostile_empty")


# -- without a key -----------------------------------------------------------------------------------------------------


def test_a_server_with_a_message_queue_and_no_key_refuses_to_start(empty: str) -> None:
    with contextlib.closing(ServerProcess(empty, wait="nothing", MESSAGE_QUEUE="postgres")) as server:
        assert server.process.wait(PATIENCE) == 4
        lines = [line for line in server.log.splitlines() if "MESSAGE_QUEUE is set, but" in line]
        assert 1 <= len(lines) <= int(WORKERS)
        assert all("'socketio-pg init' (or AUTO_INIT=1), or set CLUSTER_KEY" in line for line in lines)
        assert "Traceback" not in server.log


def test_with_auto_init_the_key_is_made_first(empty: str) -> None:
    with contextlib.closing(ServerProcess(empty, MESSAGE_QUEUE="postgres", AUTO_INIT="1")) as server:
        assert server.get("/readyz")[0] == 200


def test_a_role_that_may_not_read_the_key_is_told_the_grant(newest_pg: Cluster, empty: str) -> None:
    assert run("init", url=empty).returncode == 0
    newest_pg.sql("DROP ROLE IF EXISTS hostile_web")
    newest_pg.sql("CREATE ROLE hostile_web LOGIN")
    url = empty.replace("postgres@", "hostile_web@")
    with contextlib.closing(ServerProcess(url, wait="nothing", MESSAGE_QUEUE="postgres")) as server:
        assert server.process.wait(PATIENCE) == 4
        assert "GRANT SELECT ON socketio_pg.cluster_key TO hostile_web" in server.log


def test_a_server_whose_database_is_down_starts_and_is_not_ready() -> None:
    url = "postgresql://postgres@127.0.0.1:1/postgres"
    with contextlib.closing(ServerProcess(url, wait="http", MESSAGE_QUEUE="postgres")) as server:
        server.wait_for("/readyz", 503, "the cluster key cannot be read")
