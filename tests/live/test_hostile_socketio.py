"""Hostile Socket.IO clients of a real server: no attack affects other clients or leaves anything behind."""

import json
import re
import time
import unicodedata
from collections.abc import Iterator

import pytest

from tests.support.clients import SocketClient
from tests.support.frames import TEXT, frame
from tests.support.invariants import settled, state, unharmed
from tests.support.pace import slowness
from tests.support.patience import until
from tests.support.postgres import Cluster
from tests.support.raw_http import WebSocket, http, open_session
from tests.support.server import ServerProcess
from tests.support.swarm import RawClient, Swarm

APP = "tests.support.watched_app:app"


@pytest.fixture(scope="module")
def server(newest_pg: Cluster) -> Iterator[ServerProcess]:
    # Without rate limits, so that every packet reaches the parser. Its first pings come after the tests.
    made = ServerProcess(newest_pg.url(), app=APP, DRAIN_SECONDS="0.2", MAX_EVENTS_PER_SECOND="0", PING_INTERVAL="300")
    yield made
    made.close()


@pytest.fixture(scope="module")
def binary_server(newest_pg: Cluster) -> Iterator[ServerProcess]:
    made = ServerProcess(newest_pg.url(), app=APP, DRAIN_SECONDS="0.2", MAX_EVENTS_PER_SECOND="0", BINARY="1")
    yield made
    made.close()


def call(swarm: Swarm, client: RawClient, packet: str, id: int) -> object:
    """Send ``packet``, which requests acknowledgement ``id``, and return its value."""
    client.send(packet)
    return answer_of(swarm, client, id)


def answer_of(swarm: Swarm, client: RawClient, id: int) -> object:
    def answers() -> list[str]:
        return [packet for packet in client.packets if isinstance(packet, str) and packet.startswith(f"3{id}[")]

    swarm.run_until(lambda: bool(answers()) or client.closed)
    assert answers(), "the connection was closed"

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(answers()[0][len(f"3{id}") :], parse_constant=refuse)[0]


@pytest.mark.parametrize(
    "name", ["connect", "disconnect", "connect_error", "disconnecting", "newListener", "removeListener", "*"]
)
def test_reserved_event_names_are_refused(server: ServerProcess, channel: str, name: str) -> None:
    with unharmed(server, channel) as witness, Swarm("127.0.0.1", server.port) as swarm:
        [raw] = swarm.connect(1)
        victim = witness.io.get_sid()
        for number, arguments in enumerate((f',"{victim}"', f',"{victim}",{{}}', "")):
            answer = call(swarm, raw, f'42{number}["{name}"{arguments}]', number)
            assert isinstance(answer, dict)
            assert answer["error"] == {"code": "invalid_request", "message": f"the event name '{name}' is reserved"}


@pytest.mark.parametrize(
    "packet",
    ["42{}", "42[]", "4abc", "42", "43", "4", "47", '44{"message":"x"}', "40", '42-1["x"]', '42a["x"]', "43abc",
     f'42{"9" * 100}["x"]', '42["x"', "42" + "[" * 60_000, '40/a\r\nb,{}', '451-["x",{"_placeholder":true,"num":0}]',
     '450-["x"]', '459999999999-["x"]', '45-1-["x"]', "461-1[]"],
    ids=lambda packet: packet[:24].encode("unicode_escape").decode(),
)  # fmt: skip
def test_thousands_of_invalid_packets_cause_one_error_per_client(
    server: ServerProcess, channel: str, packet: str
) -> None:
    with unharmed(server, channel), Swarm("127.0.0.1", server.port) as swarm:
        clients = swarm.connect(20)
        for client in clients:
            client.socket.setblocking(True)
            client.send_all(*[packet] * (200 if len(packet) < 1000 else 1))
            client.socket.setblocking(False)
        swarm.run_until(lambda: all(client.closed for client in clients))
        assert [len(client.events("error")) for client in clients] == [1] * 20, "one error, whatever follows"
        assert clients[0].events("error")[0]["code"] == "invalid_request"


def test_invalid_packets_of_many_connections_do_not_flood_the_log(server: ServerProcess, channel: str) -> None:
    with unharmed(server, channel), Swarm("127.0.0.1", server.port) as swarm:
        logged, began = len(server.log), time.monotonic()
        for _ in range(5):
            clients = swarm.connect(400)
            for client in clients:
                client.send("42{}")
            swarm.run_until(lambda clients=clients: all(client.closed for client in clients))  # type: ignore[misc]
        lines = server.log[logged:].count("closing the connection of a client")
        assert 1 <= lines <= (time.monotonic() - began + 1) * len(server.worker_pids())


def test_unexpected_binary_data_closes_the_connection(server: ServerProcess, channel: str) -> None:
    with unharmed(server, channel), Swarm("127.0.0.1", server.port) as swarm:
        [raw] = swarm.connect(1)
        raw.send_binary(b"\0" * 1000)
        swarm.run_until(lambda: raw.closed)
        with SocketClient(server.url, reconnection=False) as client:  # a stock client that sends binary data regardless
            client.io.emit("publish", {"channel": channel, "payload": b"binary"})
            assert client.next("error")["message"] == "this server accepts no binary data"
            until(lambda: not client.io.eio.ws.connected, "the server closes the connection")
            # If the client was just sending the attachment, it has missed that, and would only notice after 30 seconds.
            client.io.eio.queue.put(None)
            client.next("disconnect")


@pytest.mark.parametrize(
    ("head", "attachments"),
    [
        ('51-["x",{"_placeholder":true,"num":-1}]', [b"x"]),
        ('51-["x",{"_placeholder":true,"num":0},{"_placeholder":true,"num":0}]', [b"x"]),
        ('51-["x",{"_placeholder":true,"num":{"_placeholder":true,"num":0}}]', [b"x"]),
        ('52-["x",{"_placeholder":true,"num":0}]', [b"x", b"x"]),
        ('54-["x"]', [b"x" * 400_000] * 4),
        ('517-["x"]', []),
        ('50-["x"]', []),
    ],
    ids=["negative", "twice", "nested", "missing", "too large together", "too many", "none"],
)
def test_invalid_attachments_close_the_connection(
    binary_server: ServerProcess, channel: str, head: str, attachments: list[bytes]
) -> None:
    with unharmed(binary_server, channel), Swarm("127.0.0.1", binary_server.port) as swarm:
        [raw] = swarm.connect(1)
        raw.socket.setblocking(True)
        raw.send("4" + head)
        for attachment in attachments:
            raw.send_binary(attachment)
        raw.socket.setblocking(False)
        swarm.run_until(lambda: raw.closed)
        assert [error["code"] for error in raw.events("error")] == ["invalid_request"]


def test_missing_attachments_are_released_on_disconnect(binary_server: ServerProcess, channel: str) -> None:
    before = state(binary_server)["attachments"]
    with unharmed(binary_server, channel), Swarm("127.0.0.1", binary_server.port) as swarm:
        clients = swarm.connect(50)
        for client in clients:
            client.send('4516-["x",{"_placeholder":true,"num":0}]')
            client.send_binary(b"x" * 100)
        until(lambda: state(binary_server)["attachments"] == before + 50, "the server waits for all attachments")
        for client in clients:
            swarm.leave(client)
    assert state(binary_server)["attachments"] == before


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("NaN", "invalid_request"),
        ("[Infinity]", "invalid_request"),
        ('{"a":-Infinity}', "invalid_request"),
        ("1e400", "invalid_request"),
        ('"\\ud800"', "invalid_request"),
        ('{"\\udc00":1}', "invalid_request"),
        ("9" * 4_000, "invalid_request"),
        ("[" * 1_010 + "]" * 1_010, "invalid_request"),
        ("[" * 50_000 + "1" * 500_000, "invalid_request"),
        ("[]," * 300_000 + "[]", "invalid_request"),
        ("123456789012345678901234567890", None),
        ('{"__proto__":{"admin":true},"constructor":{"prototype":1}}', None),
        ('{"a":1,"a":2}', None),
        ('"\\u0000\\u202e\\u2028"', None),
        ('{"_placeholder":true,"num":0}', None),
    ],
    ids=lambda value: None if value is None else value[:24].encode("unicode_escape").decode(),
)
def test_payload_values_are_checked(server: ServerProcess, channel: str, value: str, code: str | None) -> None:
    with unharmed(server, channel), Swarm("127.0.0.1", server.port) as swarm:
        [raw] = swarm.connect(1)
        assert call(swarm, raw, f'421["subscribe",{{"channel":"{channel}"}}]', 1) == {"ok": True, "channel": channel}
        raw.socket.setblocking(True)
        raw.send(f'422["publish",{{"channel":"{channel}","payload":{value}}}]')
        raw.socket.setblocking(False)
        answer = answer_of(swarm, raw, 2)
        assert isinstance(answer, dict)
        assert answer.get("error", {}).get("code") == code
        if code is None:
            swarm.run_until(lambda: bool(raw.events("event")))
            assert raw.events("event")[0]["payload"] == json.loads(value)


@pytest.mark.parametrize(
    "value", ["NaN", "[1e400]", '"\\ud800"', '{"\\ud800":NaN}', "12345678901234567890123", "9" * 4_200]
)
def test_return_values_of_handlers_are_valid_json(server: ServerProcess, channel: str, value: str) -> None:
    with unharmed(server, channel), Swarm("127.0.0.1", server.port) as swarm:
        [raw] = swarm.connect(1)
        answer = call(swarm, raw, f'421["message-with-ack",{value}]', 1)
        assert answer in (None, [None], json.loads(value) if value.isdigit() else None) or (
            isinstance(answer, dict) and answer["error"]["code"] == "internal"
        )
        assert call(swarm, raw, '422["message-with-ack","still here"]', 2) == "still here"


@pytest.mark.serial
@pytest.mark.parametrize("packet", ["[" * 1_000_000, "9" * 1_000_000, "[" + "9" * 999_000 + "]", "NaN," * 250_000,
                                    '"' + "\\ud800" * 160_000 + '"', "[]," * 330_000, "1e400," * 160_000],
                         ids=lambda packet: packet[:7].encode("unicode_escape").decode())  # fmt: skip
def test_one_megabyte_of_garbage_delays_no_other_client(server: ServerProcess, channel: str, packet: str) -> None:
    with unharmed(server, channel) as witness, Swarm("127.0.0.1", server.port) as swarm:
        clients = swarm.connect(3)
        for client in clients:
            client.socket.setblocking(True)
            client.send(f'421["x",{packet}]')
            client.socket.setblocking(False)
        began = time.monotonic()
        witness.call("unsubscribe", {"channel": "nothing"})
        assert time.monotonic() - began < 8.0 * slowness(), "mostly an allowance for a busy machine"
        for client in clients:
            answer = answer_of(swarm, client, 1)
            assert isinstance(answer, dict)
            assert answer["error"]["code"] == "invalid_request"


@pytest.mark.parametrize(
    "name",
    ["5", "1.5", "true", "false", "null", '["a"]', '{"a":1}', '""', f'"{"x" * 64}"', f'"{"é" * 32}"', '"socketio_pg"',
     '"socketio_pg_bell"', '"socketio_pg_permissions"', '"socketio_pg:x"', '"a\\u0000"', '"a\\r\\nERROR forged"',
     '"\\u0085"', '"\\ud800"', '"*"', '"a*"', '" a"', '"a\\u3000"', "NaN", "1e400", "9" * 30],
)  # fmt: skip
def test_invalid_channels_are_refused(server: ServerProcess, channel: str, name: str) -> None:
    with unharmed(server, channel), Swarm("127.0.0.1", server.port) as swarm:
        [raw] = swarm.connect(1)
        for number, event in enumerate(("subscribe", "unsubscribe", "publish")):
            answer = call(swarm, raw, f'42{number}["{event}",{{"channel":{name},"payload":1}}]', number)
            assert isinstance(answer, dict)
            assert answer["error"]["code"] == "invalid_channel"


def test_client_id_is_not_a_valid_channel(server: ServerProcess, channel: str) -> None:
    with unharmed(server, channel) as witness, SocketClient(server.url) as client:
        for sid in (witness.io.get_sid(), client.io.get_sid()):
            assert client.call("subscribe", {"channel": sid})["error"]["code"] == "invalid_channel"


def test_similar_looking_names_are_different_channels(server: ServerProcess, newest_pg: Cluster, channel: str) -> None:
    names = [
        unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é"), "paypal", "pаypal", "a\u202eb", "ab",  # noqa: RUF001
        "a\u200bb", "A", "a", "a", "ﬁ", "fi", "ß", "ss", "Ⅷ", "__proto__", "constructor",
    ]  # fmt: skip
    with unharmed(server, channel):
        clients = [SocketClient(server.url) for _ in names]
        try:
            for name, client in zip(names, clients, strict=True):
                client.subscribe(name)
                assert client.next("subscribed")["channel"] == name
            for name in names:
                newest_pg.notify(name, json.dumps(name))
            for name, client in zip(names, clients, strict=True):
                assert client.next("event") == {"channel": name, "payload": name}
            assert [client.pending("event") for client in clients] == [0 if names.count(n) == 1 else 1 for n in names]
        finally:
            for client in clients:
                client.close()


@pytest.mark.parametrize(
    "start",
    ['"since":{"epoch":"x","position":-1}', '"since":{"epoch":"x","position":9223372036854775808}',
     '"since":{"epoch":"x","position":18446744073709551616}', '"since":{"epoch":"x","position":1.5}',
     '"since":{"epoch":"x","position":"1"}', '"since":{"epoch":"x","position":true}',
     '"since":{"epoch":1,"position":1}',
     '"since":{"epoch":null,"position":1}', '"since":[]', '"since":"x"', '"since":{}', '"since":{"epoch":"x"}',
     '"since":{"epoch":"x","position":NaN}', '"since":{"epoch":"x","position":1e400}', '"history":-1', '"history":1001',
     '"history":true', '"history":1.0', '"history":"5"', '"history":[]', '"history":1e400',
     '"history":1,"since":{"epoch":"x","position":1}'],
)  # fmt: skip
def test_invalid_positions_are_refused(server: ServerProcess, channel: str, start: str) -> None:
    with unharmed(server, channel), Swarm("127.0.0.1", server.port) as swarm:
        [raw] = swarm.connect(1)
        answer = call(swarm, raw, f'421["subscribe",{{"channel":"{channel}",{start}}}]', 1)
        assert isinstance(answer, dict)
        assert answer["error"]["code"] == "invalid_request"


@pytest.mark.parametrize("epoch", ["", "x" * 900_000, "'; DROP SCHEMA socketio_pg CASCADE; --", "\0", "a\r\nb", "%s"])
@pytest.mark.parametrize("position", [0, 1, 2**63 - 1])
def test_unknown_epoch_is_not_recovered(server: ServerProcess, channel: str, epoch: str, position: int) -> None:
    with unharmed(server, channel), SocketClient(server.url) as client:
        answer = client.call("subscribe", {"channel": channel, "since": {"epoch": epoch, "position": position}})
        assert (answer["ok"], answer["recovered"], answer["reason"]) == (True, False, "not_installed")


def test_unrequested_acknowledgements_are_ignored(server: ServerProcess, channel: str) -> None:
    with unharmed(server, channel), Swarm("127.0.0.1", server.port) as swarm:
        [raw] = swarm.connect(1)
        raw.send_all(*[f'43{number}["x"]' for number in range(5_000)])
        assert call(swarm, raw, '427["message-with-ack",1]', 7) == 1
        # Acknowledgements with other arguments, and a repeated one.
        raw.send('428["call me","?"]')
        swarm.run_until(lambda: any(re.match(r'2\d+\["question"', str(packet)) for packet in raw.packets))
        asked = next(packet for packet in raw.packets if re.match(r'2\d+\["question"', str(packet)))
        id = re.match(r"2(\d+)", asked)
        assert id
        raw.send_all(*[f'43{id[1]}["mine"]'] * 1_000)
        assert answer_of(swarm, raw, 8) == "mine"


def test_thousands_of_subscriptions_leave_nothing_behind(
    server: ServerProcess, newest_pg: Cluster, channel: str
) -> None:
    with unharmed(server, channel), Swarm("127.0.0.1", server.port) as swarm:
        [raw] = swarm.connect(1)
        body = json.dumps({"channel": channel})
        for _ in range(20):
            raw.send_all(*[f'42["subscribe",{body}]', f'42["unsubscribe",{body}]'] * 100)
            call(swarm, raw, '429["message-with-ack",1]', 9)
        raw.packets.clear()
        call(swarm, raw, f'421["subscribe",{body}]', 1)
        raw.packets.clear()
        raw.send_all(*[f'42{number}["subscribe",{body}]' for number in range(10, 2_010)])
        answer_of(swarm, raw, 2_009)
        raw.packets.clear()
        newest_pg.notify(channel, "1")
        newest_pg.notify(channel, "2")
        swarm.run_until(lambda: len(raw.events("event")) >= 2)
        assert [event["payload"] for event in raw.events("event")] == [1, 2]


def test_thousands_of_reconnects_on_their_transports_leave_nothing_behind(server: ServerProcess, channel: str) -> None:
    with unharmed(server, channel), Swarm("127.0.0.1", server.port) as swarm:
        body = json.dumps({"channel": channel})
        clients = swarm.connect(100)
        for raw in clients:
            raw.send_all(*[f'42["subscribe",{body}]', "41", "40"] * 20)
        swarm.run_until(
            lambda: all(sum(str(one).startswith('0{"sid"') for one in raw.packets) == 21 for raw in clients)
        )
        assert call(swarm, clients[0], '427["message-with-ack",1]', 7) == 1


def test_closed_sessions_do_not_stay_until_their_ping(server: ServerProcess, channel: str) -> None:
    """A flood of sessions that make room for each other held 100 MB until the time of PING_INTERVAL was over."""
    with unharmed(server, channel):
        base = state(server)
        for _ in range(20):
            session = open_session(server)
            assert http(server, "POST", session, body=b"3").status == 200
            assert http(server, "POST", session, body=b"1").status == 200
            with WebSocket(server) as one:
                one.connect()
        settled(server, base)


def test_thousands_of_unknown_namespaces_are_refused(server: ServerProcess, channel: str) -> None:
    with unharmed(server, channel), Swarm("127.0.0.1", server.port) as swarm:
        clients = swarm.connect(100)
        swarm.run_until(lambda: all(raw.events("server_hello") for raw in clients))
        for raw in clients:
            raw.packets.clear()
            raw.send_all(*[f"40/{number}," for number in range(200)])
        swarm.run_until(lambda: all(raw.closed for raw in clients))
        refusals = [f'4/{number},{{"message":"Invalid namespace"}}' for number in range(10)]
        assert [list(raw.packets) for raw in clients] == [refusals] * 100


def test_failing_handler_is_reported_and_logged_at_a_limited_rate(server: ServerProcess, channel: str) -> None:
    with unharmed(server, channel, errors_logged=True), Swarm("127.0.0.1", server.port) as swarm:
        [raw] = swarm.connect(1)
        logged, began = len(server.log), time.monotonic()
        for number in range(10):
            raw.send_all(*['42["raise"]', '42["raise",1,2]', '42["call me"]'] * 100)
            answer = call(swarm, raw, f'42{number}["raise"]', number)
            assert answer == {"ok": False, "error": {"code": "internal", "message": "the server failed to handle this"}}
        answer = call(swarm, raw, '4299["raise",1]', 99)
        assert isinstance(answer, dict)
        assert answer["error"] == {"code": "invalid_request", "message": "this event takes other arguments"}
        assert server.log[logged:].count("Traceback") <= time.monotonic() - began + 1
        assert not any("s3cret" in str(packet) for packet in raw.packets)


def test_client_input_cannot_start_a_log_line(server: ServerProcess, channel: str) -> None:
    forged = r"x\r\n2026-01-01 ERROR forged\n"
    with unharmed(server, channel), Swarm("127.0.0.1", server.port) as swarm:
        for packet in (
            f'42["{forged}",1]', f'42["raise","{forged}"]', f'42["subscribe",{{"channel":"{forged}"}}]',
            "40/x\r\nERROR forged,", f'40{{"token":"{forged}"}}', '4"\r\nERROR forged"',
        ):  # fmt: skip
            [raw] = swarm.connect(1)
            raw.send(packet)
            raw.send("42{}")
            swarm.run_until(lambda raw=raw: raw.closed)  # type: ignore[misc]
        assert "forged" not in server.log


@pytest.mark.parametrize("auth", ['{"token":"\\ud800"}', "[NaN,18446744073709551616]"])
def test_auth_with_which_the_connect_handler_fails_leaves_nothing(
    server: ServerProcess, channel: str, auth: str
) -> None:
    # The application emits what the client sent, and logs that this failed.
    with unharmed(server, channel, errors_logged=True), WebSocket(server) as client:
        client.connect()
        client.text(f"40/careless,{auth}")
        while not (answer := client.read_text()).startswith("44/careless,"):
            pass
        assert json.loads(answer[len("44/careless,") :])["data"]["code"] == "internal"


def test_packets_that_arrive_while_the_connection_closes_leave_nothing(server: ServerProcess, channel: str) -> None:
    with unharmed(server, channel), WebSocket(server) as client:
        client.connect()
        client.text("40/slow,")
        while not client.read_text().startswith("40/slow,"):
            pass
        # Its disconnect handler waits.
        packets = ["1", "40/custom,", "40/nowhere,", '42/slow,["x"]', '42["x"]', "41", "40"]
        client.send(b"".join(frame(TEXT, packet.encode()) for packet in packets))
        assert client.closed()
