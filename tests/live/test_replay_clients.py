"""socketio_pg.js under Node and both Python subscribers behave the same: the messages that handlers get, in order.

Connections go through a proxy, which cuts them and refuses new ones as long as a test needs.
"""

import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.clients import SocketClient
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster
from tests.support.proxy import Proxy
from tests.support.replay_clients import CLIENTS, Client, JavaScript, ProxiedLog, Refused, numbers
from tests.support.server import ServerProcess


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[ProxiedLog]:
    made = ProxiedLog(newest_pg, "replay_clients")
    made.install()
    yield made
    made.close()


# Nightly: it shares its decisions with the subscriber for threads. See also test_aio.py.
@pytest.fixture(params=["javascript", "python", pytest.param("asyncio", marks=pytest.mark.nightly)])
def kind(request: pytest.FixtureRequest) -> Callable[[str], Client]:
    return CLIENTS[request.param]


@pytest.fixture
def kinds(pytestconfig: pytest.Config) -> list[Callable[[str], Client]]:
    """All kinds, for tests whose server is stopped or slow: their clients wait together."""
    return [CLIENTS[name] for name in CLIENTS if name != "asyncio" or pytestconfig.getoption("nightly")]


@pytest.fixture
def client(log: ProxiedLog, kind: Callable[[str], Client]) -> Iterator[Client]:
    with contextlib.closing(kind(log.address)) as made:
        yield made
    log.proxy.restore()


def test_messages_of_both_tiers_arrive_as_sent(log: ProxiedLog, client: Client, channel: str) -> None:
    client.subscribe("one", channel)
    start = client.position("one")
    log.notify(channel, {"a": [1]})
    assert client.next("message", "one") == ({"channel": channel, "payload": {"a": [1]}}, start)
    log.publish(channel, 1, 1)
    message, position = client.next("message", "one")
    assert position == {"epoch": message["epoch"], "position": message["position"]} == client.position("one")
    assert (position["epoch"], position["position"] > start["position"]) == (start["epoch"], True)
    assert (message["payload"], "replayed" in message) == ([1, ""], False)


def test_messages_published_while_disconnected_arrive_once_in_order(
    log: ProxiedLog, client: Client, channel: str
) -> None:
    client.subscribe("one", channel)
    log.publish(channel, 1, 3)
    assert numbers(client, "one", 3) == [1, 2, 3]
    log.proxy.refuse()
    log.publish(channel, 4, 2000, pad=1000)
    log.notify(channel, "lost")
    log.proxy.restore()
    gap, _ = client.next("gap", "one")
    log.publish(channel, 2001, 2003)
    log.notify(channel, [2004])
    assert sorted(numbers(client, "one", 2001)) == list(range(4, 2005))
    # NOTIFY is not stored. The tier tells applications that the messages of the log are complete.
    assert (gap["tier"], gap["reason"], gap["channel"]) == ("notify", "client_disconnected", channel)
    [(plausible,)] = log.sql("SELECT %s::timestamptz < %s::timestamptz", gap["since"], gap["until"])
    assert plausible


def test_server_restarts_lose_no_log_messages(
    log: ProxiedLog, kinds: list[Callable[[str], Client]], channel: str
) -> None:
    """Publishes to both tiers throughout. All of the log arrives; of NOTIFY, the messages sent while connected."""
    last, ended = 0, threading.Event()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(kind(log.address))) for kind in kinds]
        for client in clients:
            client.subscribe("one", channel)
        begun = threading.Event()

        def publish() -> None:
            nonlocal last
            while not ended.wait(0.01):
                last += 1
                log.publish(channel, last, last)
                log.notify(channel, [-last])
                begun.set()

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            assert begun.wait(PATIENCE)
            log.server.kill()
            log.server.start()
            log.server.restart()
        finally:
            ended.set()
            thread.join()
        log.publish(channel, last + 1, last + 1)
        for client in clients:
            of_log: list[int] = []
            of_notify: list[int] = []
            while not of_log or of_log[-1] < last + 1:
                [number] = numbers(client, "one", 1)
                (of_log if number > 0 else of_notify).append(abs(number))
            assert of_log == list(range(1, last + 2))
            assert of_notify == sorted(set(of_notify))
            assert client.next("gap", "one")[0]["tier"] == "notify"


def test_hanging_connection_is_detected_and_loses_no_log_messages(
    newest_pg: Cluster, kinds: list[Callable[[str], Client]], channel: str
) -> None:
    with contextlib.ExitStack() as stack:
        log = ProxiedLog(newest_pg, "replay_hangs", PING_INTERVAL="1", PING_TIMEOUT="5")
        stack.enter_context(contextlib.closing(log))
        log.install()
        clients = [stack.enter_context(contextlib.closing(kind(log.address))) for kind in kinds]
        for client in clients:
            client.subscribe("one", channel)
        log.proxy.black_hole()
        log.publish(channel, 1, 3)
        noticed = []
        for client in clients:
            client.wait_disconnected()
            noticed += log.sql("SELECT clock_timestamp()::text")
        log.proxy.restore()
        for client, (when,) in zip(clients, noticed, strict=True):
            assert numbers(client, "one", 3) == [1, 2, 3]
            # The gap starts at the last traffic, 6 s before the client noticed: nothing sent since then has arrived.
            [(covers_outage,)] = log.sql(
                "SELECT %s::timestamptz <= %s::timestamptz - '3 s'::interval",
                client.next("gap", "one")[0]["since"], when,
            )  # fmt: skip
            assert covers_outage


def test_history_delivers_the_latest_messages(log: ProxiedLog, client: Client, channel: str) -> None:
    log.publish(channel, 1, 30)
    log.settle()
    client.subscribe("one", channel, history=20)
    found = [client.next("message", "one")[0] for _ in range(20)]
    assert [message["payload"][0] for message in found] == list(range(11, 31))
    assert all(message["replayed"] for message in found)
    client.subscribe("none", channel, history=0)
    log.publish(channel, 31, 31)
    assert numbers(client, "one", 1) == numbers(client, "none", 1) == [31]


def test_stored_position_continues_where_it_ended(log: ProxiedLog, kind: Callable[[str], Client], channel: str) -> None:
    with contextlib.closing(kind(log.address)) as client:
        client.subscribe("one", channel)
        log.publish(channel, 1, 3)
        client.next("message", "one")
        _, stored = client.next("message", "one")
    log.publish(channel, 4, 5)
    with contextlib.closing(kind(log.address)) as client:
        client.subscribe("one", channel, since=stored, history=1)  # a position takes precedence over history
        assert numbers(client, "one", 3) == [3, 4, 5]


def test_trimmed_messages_cause_a_gap(log: ProxiedLog, client: Client, channel: str) -> None:
    client.subscribe("one", channel)
    log.publish(channel, 1, 1)
    assert numbers(client, "one", 1) == [1]
    log.proxy.refuse()
    log.publish(channel, 2, 3)
    log.settle()
    log.sql(
        "WITH gone AS (DELETE FROM socketio_pg.log RETURNING position) "
        "UPDATE socketio_pg.head SET trimmed = (SELECT max(position) FROM gone)"
    )
    log.server.restart()  # otherwise the server would replay them from memory
    log.proxy.restore()
    gaps = {gap["tier"]: (gap, position) for gap, position in (client.next("gap", "one"), client.next("gap", "one"))}
    gap, position = gaps["log"]
    assert gap["reason"] == "trimmed"
    assert {"epoch": gap["epoch"], "position": gap["position"]} == position
    assert gaps["notify"][0]["reason"] == "client_disconnected"
    log.publish(channel, 4, 4)
    assert numbers(client, "one", 1) == [4]


@pytest.mark.parametrize("connected", [True, False])
def test_new_epoch_causes_a_gap(log: ProxiedLog, client: Client, channel: str, connected: bool) -> None:
    client.subscribe("one", channel)
    log.publish(channel, 1, 1)
    before = client.next("message", "one")[1]
    if not connected:
        log.proxy.refuse()
    log.sql("UPDATE socketio_pg.head SET epoch = gen_random_uuid()")
    log.sql("NOTIFY socketio_pg, 'epoch'")
    log.settle()
    log.proxy.restore()
    gap, position = client.next("gap", "one")
    if gap["tier"] == "notify":
        gap, position = client.next("gap", "one")
    assert (gap["tier"], gap["reason"]) == ("log", "epoch_changed")
    assert position["epoch"] == gap["epoch"] != before["epoch"]
    # The next reconnect uses the new epoch and position.
    log.proxy.refuse()
    log.publish(channel, 2, 3)
    log.proxy.restore()
    assert numbers(client, "one", 2) == [2, 3]


def truncate(log: ProxiedLog, dump: str) -> None:
    log.sql("TRUNCATE socketio_pg.log")


def delete_newest(log: ProxiedLog, dump: str) -> None:
    log.sql("DELETE FROM socketio_pg.log WHERE position >= (SELECT max(position) FROM socketio_pg.log)")


def set_back(log: ProxiedLog, dump: str) -> None:
    log.sql("SELECT setval('socketio_pg.outbox_id_seq', 1)")


def restore(log: ProxiedLog, dump: str) -> None:
    run_program(log, "pg_restore", "--clean", "--schema=socketio_pg", dump)


def run_program(log: ProxiedLog, name: str, *arguments: str) -> None:
    command = [str(log.cluster.client_dir / name), "--dbname", log.url, *arguments]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.parametrize(
    "change",
    [restore, *(pytest.param(other, marks=pytest.mark.nightly) for other in (truncate, delete_newest, set_back))],
)
def test_changed_past_causes_a_gap(
    log: ProxiedLog, client: Client, channel: str, change: Callable[[ProxiedLog, str], None], tmp_path: Path
) -> None:
    """While the relay is at rest. Positions begin again, and no later message is lost."""
    client.subscribe("one", channel)
    log.publish(channel, 1, 2)
    before = client.next("message", "one")[1]
    assert numbers(client, "one", 1) == [2]
    dump = str(tmp_path / "dump")
    run_program(log, "pg_dump", "--format=custom", "--schema=socketio_pg", f"--file={dump}")
    log.publish(channel, 3, 6)
    assert numbers(client, "one", 4) == [3, 4, 5, 6]
    log.settle()
    change(log, dump)
    # The server may notice first that positions have gone back, then that the epoch has ended.
    while True:
        gap, position = client.next("gap", "one")
        assert (gap["tier"], gap["reason"]) == ("log", "epoch_changed")
        if gap["epoch"] != before["epoch"]:
            break
    assert position == {"epoch": gap["epoch"], "position": gap["position"]} == client.position("one")
    with SocketClient(log.server.url) as other:
        answer = other.call("subscribe", {"channel": channel, "since": before})
        assert (answer["recovered"], answer["reason"]) == (False, "epoch_changed")
    log.publish(channel, 7, 9)
    assert numbers(client, "one", 3) == [7, 8, 9]
    assert f"new epoch, {gap['epoch']}" in log.server.log


def test_handlers_of_one_channel_are_independent(log: ProxiedLog, client: Client, channel: str) -> None:
    client.subscribe("first", channel, raises=True)
    start = client.position("first")
    log.publish(channel, 1, 50)
    assert numbers(client, "first", 50) == list(range(1, 51))
    # The server replays for these on the same subscription; the first handler gets no duplicates and misses nothing.
    client.subscribe("all", channel, since=start)
    client.subscribe("some", channel, history=5)
    client.subscribe("live", channel)
    log.publish(channel, 51, 60)
    assert numbers(client, "first", 10) == list(range(51, 61))
    assert numbers(client, "all", 60) == list(range(1, 61))
    assert numbers(client, "some", 15) == list(range(46, 61))
    assert numbers(client, "live", 10) == list(range(51, 61))
    assert client.failures(60) == ["the handler's own"] * 60
    log.proxy.refuse()
    log.publish(channel, 61, 62)
    log.proxy.restore()
    for name in ("first", "all", "some", "live"):
        assert numbers(client, name, 2) == [61, 62]


def test_replay_is_not_shortened_by_the_history_of_another_handler(
    log: ProxiedLog, client: Client, channel: str
) -> None:
    """The server runs one replay per channel, even for handlers with different positions."""
    client.subscribe("probe", channel)
    start = client.position("probe")
    log.publish(channel, 1, 1500, pad=2000)
    log.settle()
    client.unsubscribe("probe")
    client.subscribe("long", channel, since=start)
    client.subscribe("short", channel, history=1)
    assert numbers(client, "long", 1500) == list(range(1, 1501))
    assert numbers(client, "short", 1) == [1500]


def test_unsubscribed_handler_receives_nothing(log: ProxiedLog, client: Client, channel: str) -> None:
    client.subscribe("one", channel)
    client.subscribe("two", channel)
    client.subscribe("other", f"{channel}-other")
    client.unsubscribe("one")
    log.publish(channel, 1, 1)
    assert numbers(client, "two", 1) == [1]
    client.unsubscribe("two")
    client.unsubscribe("two")
    log.publish(channel, 2, 2)
    log.publish(f"{channel}-other", 3, 3)
    assert numbers(client, "other", 1) == [3]
    client.subscribe("one", channel)
    client.subscribe("two", channel)
    log.publish(channel, 4, 4)
    assert numbers(client, "one", 1) == numbers(client, "two", 1) == [4]


def test_refused_subscription_can_be_corrected(client: Client, channel: str) -> None:
    with pytest.raises(Refused, match="invalid_channel"):
        client.subscribe("one", "x" * 64)
    with pytest.raises(Refused, match="invalid_request"):
        client.subscribe("one", channel, history=1001)
    client.subscribe("one", channel)


def test_clients_retry_until_the_database_returns(
    newest_pg: Cluster, kinds: list[Callable[[str], Client]], channel: str
) -> None:
    """The server is reachable but cannot subscribe; the clients retry until it can."""
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(contextlib.closing(Proxy(newest_pg.socket_path)))
        log = stack.enter_context(contextlib.closing(ProxiedLog(newest_pg, "replay_outage")))
        log.install()
        server = ServerProcess(database.url.rpartition("/")[0] + "/replay_outage", DRAIN_SECONDS="0.2")
        stack.enter_context(contextlib.closing(server))
        clients = [stack.enter_context(contextlib.closing(kind(server.url))) for kind in kinds]
        for client in clients:
            client.subscribe("one", channel)
        log.publish(channel, 1, 1)
        for client in clients:
            assert numbers(client, "one", 1) == [1]
        server.stop()
        database.refuse()
        server._wait = "http"
        server.start()
        log.publish(channel, 2, 3)
        with SocketClient(server.url, wait=True) as other:
            assert other.call("subscribe", {"channel": channel})["error"]["code"] == "database_unavailable"
        database.restore()
        for client in clients:
            assert numbers(client, "one", 2) == [2, 3]


def test_reconnect_without_a_log_causes_a_gap(
    newest_pg: Cluster, kinds: list[Callable[[str], Client]], channel: str
) -> None:
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(contextlib.closing(ProxiedLog(newest_pg, "replay_without")))
        clients = [stack.enter_context(contextlib.closing(kind(log.address))) for kind in kinds]
        for client in clients:
            client.subscribe("one", channel, history=5)
            assert client.position("one") is None
        log.proxy.refuse()
        log.proxy.restore()
        for client in clients:
            gap, position = client.next("gap", "one")
            assert (gap["tier"], gap["reason"], position) == ("notify", "client_disconnected", None)


def test_log_installed_while_disconnected_causes_a_gap(
    newest_pg: Cluster, kind: Callable[[str], Client], channel: str
) -> None:
    """Messages of the log were lost meanwhile, so the log gets a gap as well as NOTIFY."""
    with (
        contextlib.closing(ProxiedLog(newest_pg, "replay_later")) as log,
        contextlib.closing(kind(log.address)) as client,
    ):
        client.subscribe("one", channel)
        log.proxy.refuse()
        log.install()
        log.publish(channel, 1, 1)
        log.settle()
        log.proxy.restore()
        gaps = [client.next("gap", "one")[0] for _ in range(2)]
        assert {(gap["tier"], gap["reason"]) for gap in gaps} == {
            ("log", "client_disconnected"), ("notify", "client_disconnected")
        }  # fmt: skip
        log.publish(channel, 2, 2)
        assert numbers(client, "one", 1) == [2]


def test_requests_sent_outside_the_module_lose_nothing(log: ProxiedLog, channel: str) -> None:
    """The same happens with requests that timed out in the client and were executed later."""
    with contextlib.closing(JavaScript(log.address)) as client:
        client.subscribe("one", channel)
        log.publish(channel, 1, 2000, pad=1000)
        log.settle()
        client.emit("subscribe", channel=channel, history=3)
        log.publish(channel, 2001, 2010)
        assert numbers(client, "one", 2010) == list(range(1, 2011))
        client.emit("unsubscribe", channel=channel)
        log.publish(channel, 2011, 2020)
        assert numbers(client, "one", 10) == list(range(2011, 2021))
        assert client.next("gap", "one")[0]["tier"] == "notify"


def test_errors_say_whether_the_client_retries(log: ProxiedLog, channel: str) -> None:
    with contextlib.closing(JavaScript(log.address)) as client:
        with pytest.raises(Refused, match="invalid_channel"):
            client.subscribe("one", "")
        assert (error := client.wait_error("one"))["retrying"] is False, error
        with pytest.raises(Refused, match="since must be like"):
            client.subscribe("one", channel, since={"epoch": 1})
        client.subscribe("one", channel, since=None)
