"""Forged positions on a server with a log: only the channel's own messages are read, and nothing breaks."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.clients import SocketClient
from tests.support.log import Log, numbers, since, wait_installed
from tests.support.postgres import Cluster
from tests.support.swarm import Swarm

PUBLISHED = 30


@pytest.fixture(scope="module")
def log(postgres18: Cluster) -> Iterator[Log]:
    made = Log(postgres18, "live_hostile_log", AUTO_INIT="1")
    wait_installed(made)
    # Messages of another channel, which no replay may return.
    made.publish("somebody-else's", 1, PUBLISHED)
    made.settle()
    yield made
    made.server.close()


def head(log: Log) -> dict[str, Any]:
    [(epoch, position)] = log.sql(
        "SELECT epoch::text, (SELECT max(position) FROM socketio_pg.log) FROM socketio_pg.head"
    )
    return {"epoch": epoch, "position": position}


def receives_next(log: Log, client: SocketClient, channel: str) -> bool:
    """Return whether the next message that ``client`` receives is one that is now published to ``channel``."""
    log.publish(channel, 7, 7)
    event = client.next("event", 30)
    return event["channel"] == channel and event["payload"][0] == 7 and client.pending("event") == 0


@pytest.mark.parametrize(
    "start",
    ['"since":{"epoch":EPOCH,"position":-1}', '"since":{"epoch":EPOCH,"position":-9223372036854775808}',
     '"since":{"epoch":EPOCH,"position":9223372036854775808}', '"since":{"epoch":EPOCH,"position":1e3}',
     '"since":{"epoch":EPOCH,"position":"1"}', '"since":{"epoch":EPOCH,"position":[1]}',
     '"since":{"epoch":EPOCH,"position":NaN}', '"since":{"epoch":EPOCH,"position":1e400}',
     '"since":{"epoch":[EPOCH],"position":1}', '"since":{"epoch":EPOCH,"position":null}',
     '"since":EPOCH', '"since":1', '"history":-1', '"history":1001', '"history":9223372036854775808',
     '"history":1e400', '"history":"1"', '"history":1,"since":{"epoch":EPOCH,"position":1}'],
)  # fmt: skip
def test_invalid_position_is_refused(log: Log, channel: str, start: str) -> None:
    body = f'{{"channel":"{channel}",{start.replace("EPOCH", json.dumps(head(log)["epoch"]))}}}'
    with Swarm("127.0.0.1", log.server.port) as swarm, SocketClient(log.server.url) as witness:
        witness.call("subscribe", {"channel": channel})
        [raw] = swarm.connect(1)
        raw.send(f'421["subscribe",{body}]')
        swarm.run_until(lambda: any(packet.startswith("31[") for packet in raw.packets))
        [answer] = [json.loads(packet[2:]) for packet in raw.packets if packet.startswith("31[")]
        assert answer[0]["error"]["code"] == "invalid_request"
        assert receives_next(log, witness, channel)
        raw.send('422["unsubscribe",{"channel":"another"}]')
        swarm.run_until(lambda: any(packet.startswith("32[") for packet in raw.packets))
        assert raw.events("event") == []


@pytest.mark.parametrize("position", [10**9, 2**62, 2**63 - 1])
def test_future_position_is_reported_as_unknown(log: Log, channel: str, position: int) -> None:
    with SocketClient(log.server.url) as client:
        answer = client.call("subscribe", {"channel": channel, "since": head(log) | {"position": position}})
        assert (answer["ok"], answer["recovered"], answer["reason"]) == (True, False, "position_unknown")
        assert answer["position"] <= head(log)["position"]
        assert receives_next(log, client, channel)


@pytest.mark.parametrize("position", [0, 1, PUBLISHED // 2])
def test_position_of_another_channel_replays_only_the_requested_channel(log: Log, channel: str, position: int) -> None:
    """Positions count the whole log: any one is valid, and none reveals messages of other channels."""
    log.publish(channel, 1, 3)
    log.settle()
    with SocketClient(log.server.url) as client:
        answer = client.call("subscribe", {"channel": channel, "since": head(log) | {"position": position}})
        assert (answer["ok"], answer["recovered"]) == (True, True)
        assert numbers(client, 3) == [1, 2, 3]
        assert receives_next(log, client, channel)


@pytest.mark.parametrize(
    "epoch", ["", "00000000-0000-0000-0000-000000000000", "x" * 100_000, "'; DROP SCHEMA socketio_pg CASCADE; --", "\0",
              "a\r\nb", "%s", "\u202e"],
)  # fmt: skip
@pytest.mark.parametrize("position", [0, 1, 2**63 - 1])
def test_unknown_epoch_is_reported_as_changed(log: Log, channel: str, epoch: str, position: int) -> None:
    with SocketClient(log.server.url) as client:
        answer = client.call("subscribe", {"channel": channel, "since": {"epoch": epoch, "position": position}})
        assert (answer["ok"], answer["recovered"], answer["reason"]) == (True, False, "epoch_changed")
        assert receives_next(log, client, channel)


def test_epoch_is_case_sensitive(log: Log, channel: str) -> None:
    with SocketClient(log.server.url) as client:
        start = {"epoch": head(log)["epoch"].upper(), "position": 1}
        assert client.call("subscribe", {"channel": channel, "since": start})["reason"] == "epoch_changed"


def test_maximum_history_returns_all_messages(log: Log, channel: str) -> None:
    log.publish(channel, 1, 5)
    log.settle()
    with SocketClient(log.server.url) as client:
        assert client.call("subscribe", {"channel": channel, "history": 1000})["ok"]
        assert numbers(client, 5) == [1, 2, 3, 4, 5]
        assert receives_next(log, client, channel)


def test_hundreds_of_concurrent_replay_requests_lose_nothing(log: Log, channel: str) -> None:
    """One client requests the whole channel 300 times: the last request completes, and other clients are served."""
    log.publish(channel, 1, 20)
    log.settle()
    begin = head(log) | {"position": 0}
    with SocketClient(log.server.url) as witness, Swarm("127.0.0.1", log.server.port) as swarm:
        answer = witness.call("subscribe", {"channel": channel})
        [raw] = swarm.connect(1)
        raw.send_all(*[f'42{n}["subscribe",{json.dumps({"channel": channel, "since": begin})}]' for n in range(300)])
        swarm.run_until(lambda: sum(packet.startswith("3") for packet in raw.packets) == 300, 60)
        assert all('"ok":true' in packet for packet in raw.packets if packet.startswith("3"))
        # Later requests cancel earlier ones; the last one must replay everything.
        swarm.run_until(lambda: [event["payload"][0] for event in raw.events("event")][-20:] == list(range(1, 21)), 60)
        assert since(answer)["epoch"] == begin["epoch"]
        assert receives_next(log, witness, channel)
