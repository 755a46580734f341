"""The log end to end: replay, history, unrecoverable positions, large messages, slow clients."""

import contextlib
import itertools
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest

from tests.support.clients import SocketClient
from tests.support.log import Log, numbers, since, wait_installed
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.server import PATIENT, ServerProcess
from tests.support.swarm import RawClient, Swarm


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "live_log", AUTO_INIT="1", DURABLE_CHANNELS="always:*", MAX_PAYLOAD="1000000")
    wait_installed(made)
    yield made
    made.server.close()


@pytest.fixture
def client(log: Log) -> Iterator[SocketClient]:
    with SocketClient(log.server.url) as made:
        yield made


def test_message_has_position_and_time(log: Log, client: SocketClient, channel: str) -> None:
    answer = client.call("subscribe", {"channel": channel})
    assert client.next("subscribed") == {name: answer[name] for name in ("channel", "epoch", "position")}
    log.publish(channel, 1, 2)
    first, second = client.next("event"), client.next("event")
    assert first == {
        "channel": channel, "payload": [1, ""], "position": answer["position"] + 1,
        "published_at": first["published_at"],
    }  # fmt: skip
    assert second["position"] == first["position"] + 1
    assert log.sql("SELECT clock_timestamp() - %s BETWEEN '0 s' AND '30 s'", None) == [(None,)]
    assert log.sql("SELECT now() - %s::timestamptz BETWEEN '0 s' AND '30 s'", first["published_at"]) == [(True,)]


def test_each_connection_to_the_database_names_its_part(log: Log, client: SocketClient, channel: str) -> None:
    assert client.call("publish", {"channel": channel, "payload": 1, "durable": True})["ok"]

    def names() -> set[str]:
        rows = log.sql(
            "SELECT application_name FROM pg_stat_activity WHERE datname = current_database()"
            " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return {name for (name,) in rows}

    opened = {f"socketio_pg {part}" for part in ("listen", "publish", "relay", "backlog", "keys")}
    # Opened when they are needed.
    later = {"socketio_pg history", "socketio_pg follower"}
    until(lambda: opened <= names() <= opened | later, "all connections are open, and no other one")


def test_subscription_receives_both_tiers(log: Log, client: SocketClient, channel: str) -> None:
    client.call("subscribe", {"channel": channel})
    log.sql("SELECT pg_notify(%s, '1')", channel)
    log.publish(channel, 2, 2)
    found = [client.next("event"), client.next("event")]
    assert sorted("position" in message for message in found) == [False, True]


def test_replay_continues_with_live_messages_without_loss(log: Log, channel: str) -> None:
    """Clients start at various positions while messages of various sizes are being published."""
    with SocketClient(log.server.url) as first:
        start = first.call("subscribe", {"channel": channel})
        done = threading.Event()
        total = 200

        def publish() -> None:
            for number in range(1, total + 1):
                log.publish(channel, number, number, (number % 9 == 0) * 6000 + (number % 100 == 0) * 300_000)
            done.set()

        thread = threading.Thread(target=publish)
        thread.start()
        with contextlib.ExitStack() as stack:
            later = []
            for _ in range(6):
                message = first.next("event")
                while message["payload"][0] % 15:
                    message = first.next("event")
                one = stack.enter_context(SocketClient(log.server.url))
                answer = one.call("subscribe", {"channel": channel, "since": since(start, message["position"])})
                assert (answer["recovered"], answer["position"]) == (True, message["position"])
                later.append((one, message["payload"][0]))
            all_messages = stack.enter_context(SocketClient(log.server.url))
            all_messages.call("subscribe", {"channel": channel, "since": since(start)})
            thread.join()
            assert numbers(all_messages, total) == list(range(1, total + 1))
            for one, number in later:
                assert numbers(one, total - number) == list(range(number + 1, total + 1))
                assert one.pending("gap") == 0
    assert done.is_set()


def test_replayed_messages_are_marked(log: Log, client: SocketClient, channel: str) -> None:
    answer = client.call("subscribe", {"channel": channel})
    log.publish(channel, 1, 3)
    assert numbers(client, 3) == [1, 2, 3]
    assert client.call("subscribe", {"channel": channel, "since": since(answer)})["recovered"] is True
    assert [client.next("event").get("replayed") for _ in range(3)] == [True] * 3
    log.publish(channel, 4, 4)
    message = client.next("event")
    assert (message["payload"][0], "replayed" in message) == (4, False)


def test_live_follows_each_replay(log: Log, client: SocketClient, channel: str) -> None:
    plain = client.call("subscribe", {"channel": channel})
    log.publish(channel, 1, 1500)
    assert numbers(client, 1500)[-1] == 1500
    log.settle()
    text = f"{plain['epoch']}:{plain['position']}"
    [(logged_at,)] = log.sql("SELECT min(logged_at) FROM socketio_pg.log WHERE channel = %s", channel)
    for asked, replayed in (
        ({"since": text}, 1500), ({"history": 3}, 3), ({"history": 0}, 0), ({"since": f"{uuid.uuid4()}:1"}, 0),
        ({"since": logged_at.isoformat()}, 1500),
    ):  # fmt: skip
        client.call("subscribe", {"channel": channel, **asked})
        live = client.next("live")
        assert client.pending("event") == replayed, "the replayed messages came before"
        [client.next("event") for _ in range(replayed)]
        assert (live["channel"], live["epoch"]) == (channel, plain["epoch"])
        assert live["position"] >= plain["position"] + 1500
    names = [f"{channel}-{n}" for n in range(3)]
    channels = [{"channel": names[0], "history": 9}, {"channel": names[1]}, {"channel": names[2], "since": text}]
    client.call("subscribe", {"channels": channels})
    assert {client.next("live")["channel"] for _ in range(2)} == {names[0], names[2]}
    client.call("subscribe", {"channel": channel})
    assert client.pending("live") == 0, "a client that asks for no replay is not told"


def test_history_returns_the_latest_messages(log: Log, client: SocketClient, channel: str) -> None:
    log.publish(channel, 1, 30)
    log.publish(channel + "-other", 1, 5)
    log.settle()
    answer = client.call("subscribe", {"channel": channel, "history": 12})
    assert "recovered" not in answer
    assert numbers(client, 12) == list(range(19, 31))
    assert "position" in client.call("subscribe", {"channel": channel, "history": 1000})
    assert numbers(client, 30) == list(range(1, 31))
    client.call("subscribe", {"channel": channel, "history": 0})
    log.publish(channel, 31, 31)
    assert numbers(client, 1) == [31]


def test_restarted_server_replays_from_the_log(log: Log, channel: str) -> None:
    """The new process has nothing in memory; more than one page is missing, from several channels."""
    with SocketClient(log.server.url, reconnection=False) as before:
        start = before.call("subscribe", {"channel": channel})
    for round_ in range(4):
        log.publish(channel, round_ * 400 + 1, round_ * 400 + 400)
        log.publish(f"{channel}-other", round_ * 10 + 1, round_ * 10 + 10)
    log.server.restart()
    with SocketClient(log.server.url) as after, SocketClient(log.server.url) as newest:
        answer = after.call("subscribe", {"channel": channel, "since": since(start)})
        assert answer["recovered"] is True
        newest.call("subscribe", {"channel": channel, "history": 700})
        assert numbers(after, 1600) == list(range(1, 1601))
        assert numbers(newest, 700) == list(range(901, 1601))
        answer = after.call("subscribe", {"channel": f"{channel}-other", "since": since(start)})
        assert numbers(after, 40) == list(range(1, 41))
        log.publish(channel, 1601, 1601)
        assert numbers(after, 1) == numbers(newest, 1) == [1601]


def test_unknown_start_is_not_recovered(log: Log, client: SocketClient, channel: str) -> None:
    answer = client.call("subscribe", {"channel": channel})
    log.publish(channel, 1, 3)
    numbers(client, 3)
    head = client.call("subscribe", {"channel": f"{channel}-2"})
    other = client.call("subscribe", {"channel": channel, "since": since(answer) | {"epoch": "another"}})
    assert (other["recovered"], other["reason"], other["position"]) == (False, "epoch_changed", head["position"])
    ahead = client.call("subscribe", {"channel": channel, "since": since(head, head["position"] + 1000)})
    assert (ahead["recovered"], ahead["reason"], ahead["position"]) == (False, "position_unknown", head["position"])
    # Trims as the relay does. A server that has just started does not have the messages in memory.
    with contextlib.closing(psycopg2.connect(log.url)) as connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM socketio_pg.log WHERE position <= %s", (answer["position"] + 1,))
        cursor.execute("UPDATE socketio_pg.head SET trimmed = %s", (answer["position"] + 1,))
        connection.commit()
    log.server.restart()
    with SocketClient(log.server.url, wait=True) as back:
        lost = back.call("subscribe", {"channel": channel, "since": since(answer)})
        assert (lost["recovered"], lost["reason"], lost["position"]) == (False, "trimmed", head["position"])
        kept = back.call("subscribe", {"channel": channel, "since": since(answer, answer["position"] + 1)})
        assert kept["recovered"] is True
        assert numbers(back, 2) == [2, 3]


def test_new_epoch_is_announced_to_subscribers(log: Log, client: SocketClient, channel: str) -> None:
    answer = client.call("subscribe", {"channel": channel})
    log.publish(channel, 1, 1)
    numbers(client, 1)
    log.sql("UPDATE socketio_pg.head SET system_identifier = 1")  # as in a copy from another cluster
    log.server.restart()
    with SocketClient(log.server.url, wait=True) as back:
        current = back.call("subscribe", {"channel": channel})
        while current["epoch"] == answer["epoch"]:  # the relay was not elected yet
            current = back.call("subscribe", {"channel": channel})
        log.sql("UPDATE socketio_pg.head SET epoch = gen_random_uuid()")
        log.sql("NOTIFY socketio_pg, 'epoch'")
        gap = back.next("gap")
        while gap["epoch"] == current["epoch"]:
            gap = back.next("gap")
        assert (gap["channel"], gap["reason"]) == (channel, "epoch_changed")
        log.publish(channel, 2, 2)
        message = back.next("event")
        assert (message["payload"][0], message["position"]) == (2, gap["position"] + 1)


def test_client_can_publish_to_both_tiers(log: Log, client: SocketClient, channel: str) -> None:
    def publish(**request: Any) -> Any:
        answer = client.call("publish", {"channel": channel} | request)
        return answer["ok"] or answer["error"]["code"]

    client.call("subscribe", {"channel": channel})
    assert publish(payload=1) is True
    assert "position" not in client.next("event")
    assert publish(payload=1, durable=True) is True
    assert "position" in client.next("event")
    assert publish(payload="x" * 8000) is True, "too large for NOTIFY, so it goes through the log"
    assert client.next("event")["position"] > 0
    assert publish(payload="x" * 8000, durable=False) == "payload_too_large"
    assert publish(payload="x" * 999_990) is True
    assert len(client.next("event")["payload"]) == 999_990
    assert publish(payload="x" * 1_000_001) == "payload_too_large"
    # PostgreSQL counts the text of jsonb, which has a space after each comma: 1,002,500 bytes.
    assert publish(payload=["x" * 246] * 4_010) == "payload_too_large"
    assert publish(payload="\0", durable=True) == "invalid_request"
    assert publish(payload=1, durable="yes") == "invalid_request"
    assert publish(payload=2, durable=True) is True
    assert client.next("event")["payload"] == 2


def test_durable_channels_use_the_log(log: Log, client: SocketClient, channel: str) -> None:
    client.call("subscribe", {"channel": f"always:{channel}"})
    client.call("publish", {"channel": f"always:{channel}", "payload": 1})
    assert client.next("event")["position"] > 0
    client.call("publish", {"channel": f"always:{channel}", "payload": 2, "durable": False})
    assert "position" not in client.next("event")


def test_requests_without_a_log_recover_nothing(live_server: ServerProcess, channel: str) -> None:
    with SocketClient(live_server.url) as client:
        assert client.call("subscribe", {"channel": channel}) == {"ok": True, "channel": channel}
        request = {"channel": channel, "since": {"epoch": "e", "position": 1}}
        assert client.call("subscribe", request) == {
            "ok": True, "channel": channel, "recovered": False, "reason": "not_installed",
        }  # fmt: skip
        assert client.call("subscribe", {"channel": channel, "history": 5}) == {"ok": True, "channel": channel}
        answer = client.call("publish", {"channel": channel, "payload": 1, "durable": True})
        assert answer["error"]["code"] == "log_not_installed"
        assert "socketio-pg init" in answer["error"]["message"]
        answer = client.call("publish", {"channel": channel, "payload": "x" * 8000})
        assert answer["error"]["code"] == "payload_too_large"


def test_log_can_be_installed_while_the_server_runs(newest_pg: Cluster, channel: str) -> None:
    log = Log(newest_pg, "installed_later")
    try:
        with SocketClient(log.server.url) as client:
            assert "position" not in client.call("subscribe", {"channel": channel})
            from socketio_pg.postgres.schema import statements

            log.sql(statements(1_000_000))
            log.publish(channel, 1, 1)
            assert client.next("event")["payload"][0] == 1
            assert client.call("publish", {"channel": channel, "payload": "x" * 9000})["ok"] is True
            assert len(client.next("event")["payload"]) == 9000
    finally:
        log.server.close()


def positions(client: RawClient) -> list[int]:
    return [message["position"] for message in client.events("event")]


def has_come(client: RawClient, position: int) -> bool:
    """Return whether the message at ``position`` is the newest one. `live` may follow it."""
    return any(f'"position":{position},' in packet for packet in itertools.islice(reversed(client.packets), 2))


def test_slow_client_gets_a_replay_at_its_own_speed(newest_pg: Cluster, channel: str) -> None:
    """15 MB for a client that does not read: the server neither disconnects it nor buffers, and serves others."""
    log = Log(newest_pg, "slow_log", AUTO_INIT="1", SEND_BUFFER_BYTES="100000", **PATIENT)
    wait_installed(log)
    try:
        with Swarm("127.0.0.1", log.server.port) as swarm, SocketClient(log.server.url) as other:
            start = other.call("subscribe", {"channel": channel})
            other.call("unsubscribe", {"channel": channel})
            log.publish(channel, 1, 1500, 10_000)
            log.settle()
            [slow] = swarm.connect(1, receive_buffer=4096)
            before = log.server.resident_bytes()
            slow.emit("subscribe", {"channel": channel, "since": since(start)})
            swarm.run_until(lambda: len(slow.events("event")) >= 3)
            swarm.pause(slow)
            other.call("subscribe", {"channel": f"{channel}-2"})
            log.publish(channel, 1501, 1600, 10_000)
            log.publish(f"{channel}-2", 1, 100)
            assert numbers(other, 100) == list(range(1, 101))
            assert log.server.resident_bytes() - before < 10_000_000
            swarm.resume(slow)
            swarm.run_until(lambda: has_come(slow, start["position"] + 1600))
            assert positions(slow) == list(range(start["position"] + 1, start["position"] + 1601))
            assert not slow.closed
    finally:
        log.server.close()


def test_replay_reports_messages_trimmed_meanwhile(newest_pg: Cluster, channel: str) -> None:
    """A client too slow for the log's retention gets a gap and continues after it."""
    log = Log(newest_pg, "trimmed_log", AUTO_INIT="1", SEND_BUFFER_BYTES="100000", **PATIENT)
    wait_installed(log)
    try:
        with SocketClient(log.server.url) as other:
            start = other.call("subscribe", {"channel": channel})
        log.publish(channel, 1, 3000, 10_000)
        log.settle()
        log.server.restart()
        with Swarm("127.0.0.1", log.server.port) as swarm:
            [slow] = swarm.connect(1, receive_buffer=4096)
            slow.emit("subscribe", {"channel": channel, "since": since(start)})
            swarm.run_until(lambda: len(slow.events("event")) >= 3)
            swarm.pause(slow)
            trimmed = start["position"] + 2000
            log.sql(  # in one transaction, as the relay does it
                "BEGIN; SET LOCAL socketio_pg.trimming = 'on';"
                " WITH gone AS (DELETE FROM socketio_pg.log WHERE position <= %s)"
                " UPDATE socketio_pg.head SET trimmed = %s; COMMIT", trimmed, trimmed,
            )  # fmt: skip
            swarm.resume(slow)
            swarm.run_until(lambda: has_come(slow, start["position"] + 3000))
            [gap] = slow.events("gap")
            assert gap == {"channel": channel, "reason": "trimmed", "epoch": start["epoch"], "position": trimmed}
            found = positions(slow)
            before = [position for position in found if position <= trimmed]
            assert before == list(range(start["position"] + 1, start["position"] + 1 + len(before)))
            assert found[len(before) :] == list(range(trimmed + 1, trimmed + 1001))
            order = [json.loads(packet[1:])[0] for packet in slow.packets if packet.startswith('2["')]
            assert order.index("gap") == order.index("event") + len(before), (
                "the gap is sent in place of the missing messages"
            )
    finally:
        log.server.close()


@pytest.mark.parametrize("transport", ["websocket", pytest.param("polling", marks=pytest.mark.nightly)])
def test_many_clients_can_replay_concurrently(log: Log, channel: str, transport: str) -> None:
    count = 200 if transport == "websocket" else 10
    with SocketClient(log.server.url) as one:
        start = one.call("subscribe", {"channel": channel})
    log.publish(channel, 1, 100, 50)
    log.settle()
    log.server.restart()
    if transport == "polling":
        with contextlib.ExitStack() as stack:
            polling = [stack.enter_context(SocketClient(log.server.url, ("polling",))) for _ in range(count)]
            for client in polling:
                assert client.call("subscribe", {"channel": channel, "since": since(start)})["recovered"] is True
            for client in polling:
                assert numbers(client, 100) == list(range(1, 101))
        return
    with Swarm("127.0.0.1", log.server.port) as swarm:
        clients = swarm.connect(count)
        for number, raw in enumerate(clients):
            raw.emit("subscribe", {"channel": channel, "since": since(start, start["position"] + number % 10)})
        log.publish(channel, 101, 120)
        last = start["position"] + 120
        swarm.run_until(lambda: all(positions(raw)[-1:] == [last] for raw in clients))
        for number, raw in enumerate(clients):
            assert positions(raw) == list(range(start["position"] + 1 + number % 10, start["position"] + 121))


@pytest.mark.parametrize("how", ["unsubscribe", "disconnect"])
def test_replay_can_be_ended_midway(log: Log, channel: str, how: str) -> None:
    with SocketClient(log.server.url) as one:
        start = one.call("subscribe", {"channel": channel})
    log.publish(channel, 1, 3000, 3000)
    log.settle()
    with Swarm("127.0.0.1", log.server.port) as swarm:
        [client] = swarm.connect(1, receive_buffer=4096)
        client.emit("subscribe", {"channel": channel, "since": since(start)})
        swarm.run_until(lambda: len(client.events("event")) >= 3)
        if how == "disconnect":
            swarm.leave(client, reset=True)
        else:
            client.emit("unsubscribe", {"channel": channel}, id=7)
            swarm.run_until(lambda: any(packet.startswith("37") for packet in client.packets))
            seen = len(client.events("event"))
            client.emit("subscribe", {"channel": channel, "since": since(start, start["position"] + 2999)})
            log.publish(channel, 3001, 3001)
            swarm.run_until(lambda: has_come(client, start["position"] + 3001))
            assert positions(client)[seen:] == [start["position"] + 3000, start["position"] + 3001]
    with SocketClient(log.server.url) as another:
        another.call("subscribe", {"channel": channel, "history": 1})
        assert another.next("event")["payload"][0] >= 3000


def test_invalid_requests_are_refused(client: SocketClient, channel: str) -> None:
    wrong: list[dict[str, Any]] = [
        {"since": 1}, {"since": {"epoch": "e"}}, {"history": -1}, {"history": 1001}, {"history": "1"},
        {"since": {"epoch": "e", "position": 1}, "history": 1},
    ]  # fmt: skip
    for request in wrong:
        answer = client.call("subscribe", {"channel": channel} | request)
        assert answer["error"]["code"] == "invalid_request"
    assert client.call("subscribe", {"channel": channel, "since": None, "history": None})["ok"] is True


def test_failing_publisher_does_not_affect_others(log: Log, client: SocketClient, channel: str) -> None:
    """All publishers share one transaction of the server."""
    client.call("subscribe", {"channel": channel})
    requests: list[tuple[Any, bool]] = [(number, number % 2 == 0) for number in range(20)] + [
        ("\0", True),
        (["x" * 246] * 4_010, True),  # too large as jsonb
    ]
    answers: list[Any] = []
    done = threading.Event()

    def answered() -> Callable[[Any], None]:
        def record(answer: Any) -> None:
            answers.append(answer["ok"])
            if len(answers) == len(requests):
                done.set()

        return record

    for payload, durable in requests:
        client.io.emit("publish", {"channel": channel, "payload": payload, "durable": durable}, callback=answered())
    assert done.wait(PATIENCE)
    assert sorted(answers) == [False] * 2 + [True] * 20
    found = [client.next("event")["payload"] for _ in range(20)]
    assert sorted(found) == list(range(20))


@pytest.mark.nightly
def test_log_is_installed_again_when_the_database_is_created_anew(newest_pg: Cluster, channel: str) -> None:
    log = Log(newest_pg, "live_created_anew", AUTO_INIT="1")
    try:
        wait_installed(log)
        with SocketClient(log.server.url) as client:
            client.call("subscribe", {"channel": channel})
            newest_pg.sql("DROP DATABASE live_created_anew WITH (FORCE)")
            log.server.wait_not_ready()
            newest_pg.sql("CREATE DATABASE live_created_anew")
            log.server.wait_ready()
            log.publish(channel, 1, 1)
            assert numbers(client, 1) == [1]
            assert {client.next("gap")["reason"] for _ in range(2)} == {"database_connection_lost", "epoch_changed"}
    finally:
        log.server.close()
