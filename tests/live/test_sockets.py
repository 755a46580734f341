"""python-socketio's client against gunicorn end to end: events, acknowledgements, errors."""

import json
import math
from collections.abc import Iterator

import pytest

from tests.support.clients import SocketClient
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess
from tests.support.swarm import Swarm

pytestmark = pytest.mark.green


@pytest.fixture
def client(live_server: ServerProcess) -> Iterator[SocketClient]:
    with SocketClient(live_server.url) as connected:
        yield connected


def test_server_sends_hello(client: SocketClient) -> None:
    hello = client.next("server_hello")
    assert hello.keys() == {"auth", "client", "expires_at", "features", "health", "sid", "version"}
    assert hello["client"] is hello["expires_at"] is None
    assert hello["sid"] == client.io.get_sid()


def test_notify_from_sql_arrives(client: SocketClient, newest_pg: Cluster, channel: str) -> None:
    client.subscribe(channel)
    assert client.next("subscribed") == {"channel": channel}
    newest_pg.notify(channel, '{"hello": "world"}')
    assert client.next("event") == {"channel": channel, "payload": {"hello": "world"}}


def test_trigger_notifies(client: SocketClient, newest_pg: Cluster, channel: str) -> None:
    client.subscribe(channel)
    newest_pg.sql(
        f"""
        CREATE TABLE "{channel}" (id int);
        CREATE FUNCTION "{channel}"() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_notify('{channel}', row_to_json(NEW)::text); RETURN NEW; END $$;
        CREATE TRIGGER t AFTER INSERT ON "{channel}" FOR EACH ROW EXECUTE FUNCTION "{channel}"();
        INSERT INTO "{channel}" VALUES (1), (2)
        """
    )
    assert [client.next("event")["payload"] for _ in range(2)] == [{"id": 1}, {"id": 2}]


@pytest.mark.parametrize(
    "payload",
    [
        None,
        True,
        0,
        -1.5,
        10**30,
        "",
        "text",
        "ünïcödé 🐘",
        [],
        [1, [2]],
        {},
        {"a": {"b": None}},
        "nul \0 inside",
        "'; --",
    ],
)
def test_any_json_value_can_be_published(client: SocketClient, channel: str, payload: object) -> None:
    client.subscribe(channel)
    assert client.call("publish", {"channel": channel, "payload": payload}) == {"ok": True, "channel": channel}
    assert client.next("published") == {"channel": channel}
    assert client.next("event") == {"channel": channel, "payload": payload}


@pytest.mark.parametrize("text", ["", "no json", "NaN", "Infinity", "{'a': 1}", '"\\ud800"', "[1,]", "[" * 3000])
def test_payload_that_is_not_json_arrives_as_string(
    client: SocketClient, newest_pg: Cluster, channel: str, text: str
) -> None:
    client.subscribe(channel)
    newest_pg.notify(channel, text)
    newest_pg.notify(channel, '"next"')
    assert client.next("event") == {"channel": channel, "payload": text}
    assert client.next("event") == {"channel": channel, "payload": "next"}


def test_payload_limit_is_in_bytes(client: SocketClient, channel: str) -> None:
    client.subscribe(channel)
    fits = "é" * 3998 + "x"  # with the two quotes 7,999 bytes
    assert len(json.dumps(fits, ensure_ascii=False).encode()) == 7999
    assert client.call("publish", {"channel": channel, "payload": fits})["ok"] is True
    assert client.next("event")["payload"] == fits
    refused = client.call("publish", {"channel": channel, "payload": fits + "y"})
    assert (refused["ok"], refused["error"]["code"]) == (False, "payload_too_large")


@pytest.mark.parametrize(
    ("event", "argument", "code"),
    [
        ("subscribe", None, "invalid_request"),
        ("subscribe", "foo", "invalid_request"),
        ("subscribe", [], "invalid_request"),
        ("subscribe", ({"channel": "a"}, {"channel": "b"}), "invalid_request"),
        ("subscribe", {}, "invalid_channel"),
        ("subscribe", {"channel": None}, "invalid_channel"),
        ("subscribe", {"channel": 5}, "invalid_channel"),
        ("subscribe", {"channel": ["a"]}, "invalid_channel"),
        ("subscribe", {"channel": ""}, "invalid_channel"),
        ("subscribe", {"channel": "x" * 64}, "invalid_channel"),
        ("subscribe", {"channel": "é" * 32}, "invalid_channel"),
        ("subscribe", {"channel": "nul\0"}, "invalid_channel"),
        ("subscribe", {"channel": "two\nlines"}, "invalid_channel"),
        ("subscribe", {"channel": " padded "}, "invalid_channel"),
        ("subscribe", {"channel": "socketio_pg_bell"}, "invalid_channel"),
        ("subscribe", {"channel": "all*"}, "invalid_channel"),
        ("subscribe", {"channel": "\ud800"}, "invalid_channel"),
        ("unsubscribe", {"channel": 5}, "invalid_channel"),
        ("publish", {"channel": "a"}, "invalid_request"),
        ("publish", {"payload": 1}, "invalid_channel"),
        ("publish", {"channel": "a", "payload": math.nan}, "invalid_request"),
        ("publish", {"channel": "a", "payload": [math.inf]}, "invalid_request"),
        ("publish", {"channel": "a", "payload": {"lone": "\ud800"}}, "invalid_request"),
        ("publish", {"channel": "a", "payload": "x" * 8000}, "payload_too_large"),
        ("no_such_event", {}, "invalid_request"),
        ("connect", {}, "invalid_request"),
        ("disconnect", {}, "invalid_request"),
    ],
)
def test_invalid_request_is_answered_and_the_connection_stays_open(
    client: SocketClient, channel: str, event: str, argument: object, code: str
) -> None:
    answer = client.call(event, argument)
    assert answer["ok"] is False
    assert answer["error"]["code"] == code
    assert answer["error"]["message"]
    client.subscribe(channel)
    assert client.pending("error") == 0, "with an acknowledgement there is no error event"


def test_request_without_acknowledgement_gets_an_error_event(client: SocketClient) -> None:
    client.io.emit("subscribe", {"channel": "x" * 64})
    error = client.next("error")
    assert (error["code"], error["channel"]) == ("invalid_channel", "x" * 64)
    client.io.emit("publish", "nonsense")
    error = client.next("error")
    assert error["code"] == "invalid_request"
    assert "channel" not in error


@pytest.mark.parametrize("packet", ["42[5]", "42[null]", '42["publish",' + "[" * 100_000, "43[1]"])
def test_invalid_event_is_answered_and_the_connection_stays_open(live_server: ServerProcess, packet: str) -> None:
    with Swarm("127.0.0.1", live_server.port) as swarm:
        (raw,) = swarm.connect(1)
        raw.send(packet)
        raw.emit("subscribe", {"channel": "after"}, id=7)
        swarm.run_until(lambda: any(text.startswith("37[") for text in raw.packets))
        expected = [] if packet == "43[1]" else ["invalid_request"]  # an unrequested acknowledgement is ignored
        assert [error["code"] for error in raw.events("error")] == expected


@pytest.mark.parametrize(
    "name",
    [
        '"quoted"',
        "a;DROP TABLE x",
        "it's",
        "back\\slash",
        "%s",
        "naïve",
        "日本語",
        "🐘",
        "a b",
        "$1",
        "A",
        "--",
        'x"; NOTIFY y',
    ],
)
def test_unusual_channel_names_work(client: SocketClient, newest_pg: Cluster, name: str) -> None:
    client.subscribe(name)
    newest_pg.notify(name, "1")
    assert client.next("event") == {"channel": name, "payload": 1}
    client.call("publish", {"channel": name, "payload": 2})
    assert client.next("event") == {"channel": name, "payload": 2}


def test_unsubscribe_ends_delivery(client: SocketClient, newest_pg: Cluster, channel: str) -> None:
    other = f"{channel}-2"
    client.subscribe(channel)
    client.subscribe(other)
    assert client.call("unsubscribe", {"channel": channel}) == {"ok": True, "channel": channel}
    assert client.next("unsubscribed") == {"channel": channel}
    newest_pg.notify(channel, "1")
    newest_pg.notify(other, "2")
    assert client.next("event") == {"channel": other, "payload": 2}
    assert client.call("unsubscribe", {"channel": channel})["ok"] is True, "unsubscribe is idempotent"


def test_subscribing_twice_delivers_once(client: SocketClient, newest_pg: Cluster, channel: str) -> None:
    client.subscribe(channel)
    client.subscribe(channel)
    newest_pg.notify(channel, "1")
    newest_pg.notify(channel, "2")
    assert [client.next("event")["payload"] for _ in range(2)] == [1, 2]


def test_room_of_another_client_is_not_a_valid_channel(client: SocketClient, live_server: ServerProcess) -> None:
    with SocketClient(live_server.url) as other:
        answer = client.call("subscribe", {"channel": other.io.get_sid()})
        assert answer["error"]["code"] == "invalid_channel"


def test_payload_text_is_forwarded_unchanged(live_server: ServerProcess, newest_pg: Cluster, channel: str) -> None:
    text = '{"z":1.0, "a":  12345678901234567890123, "a": 1e2}'
    with Swarm("127.0.0.1", live_server.port) as swarm:
        (raw,) = swarm.connect(1)
        raw.emit("subscribe", {"channel": channel}, id=1)
        swarm.run_until(lambda: any(packet.startswith("31[") for packet in raw.packets))
        newest_pg.notify(channel, text)
        swarm.run_until(lambda: any(packet.startswith('2["event"') for packet in raw.packets))
        assert raw.packets[-1] == f'2["event",{{"channel":"{channel}","payload":{text}}}]'


@pytest.mark.parametrize("transports", [("websocket",), ("polling",), ("polling", "websocket")])
def test_messages_arrive_over_every_transport(
    live_server: ServerProcess, newest_pg: Cluster, channel: str, transports: tuple[str, ...]
) -> None:
    with SocketClient(live_server.url, transports) as client:
        assert client.next("server_hello")["sid"]
        client.subscribe(channel)
        for number in range(5):
            newest_pg.notify(channel, str(number))
        assert [client.next("event")["payload"] for _ in range(5)] == [0, 1, 2, 3, 4]
