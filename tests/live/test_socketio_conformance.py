"""Conformance to the Socket.IO protocol, version 5, packet by packet, over WebSocket and long-polling."""

import base64
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Protocol

import pytest

from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess
from tests.support.swarm import Swarm

pytestmark = pytest.mark.green


@pytest.fixture(scope="module")
def server(newest_pg: Cluster) -> Iterator[ServerProcess]:
    made = ServerProcess(newest_pg.url(), app="tests.support.watched_app:app", DRAIN_SECONDS="0.2", BINARY="1")
    yield made
    made.close()


class Wire(Protocol):
    """An Engine.IO session that sends and receives Socket.IO packets."""

    def send(self, *packets: str | bytes) -> None: ...

    def next(self) -> str | bytes:
        """Return the next packet."""

    def is_closed(self) -> bool:
        """Return whether the server closes the session; waits for that."""


class OverWebSocket:
    def __init__(self, server: ServerProcess) -> None:
        self._swarm = Swarm("127.0.0.1", server.port)
        [self._client] = self._swarm.open(1)
        self._client.answers_connect = False
        self._swarm.run_until(lambda: self._client.opened)

    def send(self, *packets: str | bytes) -> None:
        for packet in packets:
            if isinstance(packet, bytes):
                self._client.send_binary(packet)
            else:
                self._client.send("4" + packet)

    def next(self) -> str | bytes:
        self._swarm.run_until(lambda: bool(self._client.packets) or self._client.closed)
        packet: str | bytes = self._client.packets.popleft()
        return packet

    def is_closed(self) -> bool:
        self._swarm.run_until(lambda: self._client.closed)
        return self._client.closed

    def close(self) -> None:
        self._swarm.close()


class OverPolling:
    def __init__(self, server: ServerProcess) -> None:
        self._url = f"{server.url}/socket.io/?EIO=4&transport=polling"
        opened = self._get()
        self._url += "&sid=" + json.loads(opened[0][1:])["sid"]
        self._packets: list[str] = []

    def _get(self) -> list[str]:
        with urllib.request.urlopen(self._url, timeout=PATIENCE) as answer:
            texts: list[str] = answer.read().decode().split("\x1e")
        return texts

    def send(self, *packets: str | bytes) -> None:
        body = "\x1e".join("b" + base64.b64encode(one).decode() if isinstance(one, bytes) else "4" + one
                           for one in packets)  # fmt: skip
        with urllib.request.urlopen(self._url, data=body.encode(), timeout=PATIENCE) as answer:
            assert answer.read() in (b"ok", b"OK")

    def next(self) -> str | bytes:
        while not self._packets:
            self._packets += [text for text in self._get() if text != "2"]
        packet = self._packets.pop(0)
        return base64.b64decode(packet[1:]) if packet.startswith("b") else packet[1:]

    def is_closed(self) -> bool:
        code = 200
        while code == 200:  # at most one poll that ends with CLOSE, then the session is unknown
            try:
                self._get()
            except urllib.error.HTTPError as error:
                code = error.code
                error.close()
        return code == 400

    def close(self) -> None:
        pass


@pytest.fixture(params=[OverWebSocket, OverPolling], ids=["websocket", "polling"])
def fresh(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[Wire]:
    """A session before CONNECT."""
    made = request.param(server)
    yield made
    made.close()


@pytest.fixture
def wire(fresh: Wire) -> Wire:
    """A session that is connected to the main namespace."""
    fresh.send("0")
    assert str(fresh.next()).startswith('0{"sid":')
    assert fresh.next() == '2["auth"]'
    assert str(fresh.next()).startswith('2["server_hello",')
    return fresh


@pytest.mark.parametrize("namespace", ["", "/custom,"])
@pytest.mark.parametrize("auth", ["", '{"token":"123"}', "{}"])
def test_connect_is_answered_before_any_event(fresh: Wire, namespace: str, auth: str) -> None:
    fresh.send(f"0{namespace}{auth}")
    answer = str(fresh.next())
    assert re.fullmatch(rf'0{namespace}{{"sid":"[^"]+"}}', answer)
    # An application's handler cannot distinguish an empty object from none.
    argument = "" if auth in ("", "{}") else "," + auth
    assert fresh.next() == f'2{namespace}["auth"{argument}]'


def test_each_namespace_has_another_sid(wire: Wire) -> None:
    wire.send("0/custom")
    first = str(wire.next())
    wire.next()
    wire.send("1/custom,", "0/custom,")
    assert first.startswith('0/custom,{"sid":')
    assert str(wire.next()) != first


def test_unknown_namespace_is_refused(fresh: Wire) -> None:
    fresh.send("0/random")
    assert fresh.next() == '4/random,{"message":"Invalid namespace"}'
    fresh.send("0")
    assert str(fresh.next()).startswith("0{")


@pytest.mark.parametrize("packet", ['2["message",1]', "1", '31["x"]', "abc", '4"no"', '51-["message"]', "2/custom,[1]"])
def test_packet_before_connect_closes_the_connection(fresh: Wire, packet: str) -> None:
    fresh.send(packet)
    assert fresh.is_closed()


def test_event_is_echoed(wire: Wire) -> None:
    wire.send('2["message",1,"2",{"3":[true]}]')
    assert wire.next() == '2["message-back",1,"2",{"3":[true]}]'


@pytest.mark.parametrize("id", ["456", "0", "1", "9007199254740991"])
def test_acknowledgement_has_the_id_of_its_event(wire: Wire, id: str) -> None:
    wire.send(f'2{id}["message-with-ack",1,"2",{{"3":[false]}}]')
    assert wire.next() == f'3{id}[1,"2",{{"3":[false]}}]'


def test_acknowledgements_have_the_namespace_of_their_event(wire: Wire) -> None:
    wire.send("0/custom,")
    wire.next()
    wire.next()
    wire.send('2/custom,7["message-with-ack",1]', '2/custom,["message",2]', '28["message-with-ack",3]')
    assert sorted(str(wire.next()) for _ in range(3)) == ['2/custom,["message-back",2]', "3/custom,7[1]", "38[3]"]


def test_binary_events_and_acknowledgements_are_echoed(wire: Wire) -> None:
    places = '{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}'
    wire.send(f'52-["message",{places}]', b"\1\2\3", b"\4\5\6")
    assert [wire.next() for _ in range(3)] == [f'52-["message-back",{places}]', b"\1\2\3", b"\4\5\6"]
    wire.send(f'52-789["message-with-ack",{places}]', b"\1\2\3", b"\4\5\6")
    assert [wire.next() for _ in range(3)] == [f"62-789[{places}]", b"\1\2\3", b"\4\5\6"]


def test_server_may_request_an_acknowledgement(wire: Wire) -> None:
    wire.send('25["call me","how?"]')
    asked = re.fullmatch(r'2(\d+)\["question","how\?"\]', str(wire.next()))
    assert asked
    wire.send(f'3{asked[1]}["so"]')
    assert wire.next() == '35["so"]'


def test_leaving_one_namespace_keeps_the_others(wire: Wire) -> None:
    wire.send("0/custom,")
    wire.next()
    wire.next()
    wire.send("1/custom,")
    wire.send('2/custom,1["message-with-ack","too late"]', '22["message-with-ack","here"]')
    assert wire.next() == '32["here"]'


def test_client_may_reconnect_to_a_namespace(wire: Wire) -> None:
    wire.send("1")
    wire.send("0")
    assert str(wire.next()).startswith('0{"sid":')


def test_server_ends_a_connection_with_disconnect(wire: Wire) -> None:
    wire.send("0/custom,")
    wire.next()
    wire.next()
    wire.send('2/custom,["leave"]')
    assert wire.next() == "1/custom,"
    wire.send('2/custom,["message","on its way"]', '22["message-with-ack","here"]')
    assert wire.next() == '32["here"]'


@pytest.mark.parametrize(
    "packet",
    ["abc", "2{}", "2[]", "2", "3", "7", '4"no"', 'abc["message"]', '2abc["message-with-ack",1]', "2-1[1]", "0",
     '2/x\r\ny,["message"]', '59999999999-["message"]', '50-["message"]'],
)  # fmt: skip
def test_invalid_packet_closes_the_connection(wire: Wire, packet: str) -> None:
    wire.send(packet)
    assert wire.is_closed()


def test_text_in_place_of_an_attachment_closes_the_connection(wire: Wire) -> None:
    wire.send('51-["message",{"_placeholder":true,"num":0}]', '2["message",1]')
    assert wire.is_closed()
