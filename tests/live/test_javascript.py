"""The stock JavaScript client under Node: WebSocket, long-polling alone, and the upgrade between them."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.missing import missing
from tests.support.postgres import Cluster
from tests.support.server import ROOT, ServerProcess


class NodeClient:
    """`client.mjs`, or another script beside it, in a process of its own."""

    def __init__(self, url: str, transports: str, script: str = "client.mjs", *arguments: str) -> None:
        node = shutil.which("node")
        if node is None or not (ROOT / "node_modules" / "socket.io-client").exists():
            missing("the JavaScript client's tests", "install Node, then `npm ci`")
        self._process = subprocess.Popen(
            [node, str(ROOT / "tests" / "live" / script), url, transports, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.said: list[dict[str, Any]] = []

    def next(self, **wanted: Any) -> dict[str, Any]:
        """The next line with these values, of those not yet taken."""
        for index, said in enumerate(self.said):
            if wanted.items() <= said.items():
                return self.said.pop(index)
        assert self._process.stdout is not None
        for text in self._process.stdout:
            line: dict[str, Any] = json.loads(text)
            if wanted.items() <= line.items():
                return line
            self.said.append(line)
        raise AssertionError(f"the client ended without {wanted}; it said {self.said}")

    def call(self, event: str, argument: object) -> Any:
        self.send({"emit": event, "argument": argument})
        return self.next(kind="answer")["answer"]

    def send(self, command: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture(params=["websocket", "polling", "polling,websocket"])
def client(request: pytest.FixtureRequest, live_server: ServerProcess) -> Iterator[NodeClient]:
    made = NodeClient(live_server.url, request.param)
    try:
        connected = made.next(event="connect")
        if "," in request.param:
            assert made.next(event="upgrade")["transport"] == "websocket"
        else:
            assert connected["transport"] == request.param
        yield made
    finally:
        made.close()


def test_the_whole_path(client: NodeClient, postgres18: Cluster, channel: str) -> None:
    assert client.next(event="server_hello")["argument"]["sid"]
    assert client.call("subscribe", {"channel": channel}) == {"ok": True, "channel": channel}
    postgres18.sql("SELECT pg_notify(%s, n::text) FROM generate_series(1, 500) AS n", channel)
    received = [client.next(event="event")["argument"] for _ in range(500)]
    assert received == [{"channel": channel, "payload": number} for number in range(1, 501)]
    payload = {"text": "ünïcödé 🐘", "nested": [1, {"deep": None}]}
    assert client.call("publish", {"channel": channel, "payload": payload}) == {"ok": True, "channel": channel}
    assert client.next(event="event")["argument"]["payload"] == payload
    assert client.call("publish", {"channel": channel, "payload": "x" * 8000})["error"]["code"] == "payload_too_large"
    assert client.call("subscribe", 5)["error"]["code"] == "invalid_request"


@pytest.mark.parametrize("transports", ["websocket", "polling"])
def test_it_comes_back_by_itself_when_the_server_restarts(postgres18: Cluster, channel: str, transports: str) -> None:
    server = ServerProcess(postgres18.url(), DRAIN_SECONDS="0.2")
    client = NodeClient(server.url, transports)
    try:
        client.next(event="connect")
        server.restart()
        assert client.next(event="disconnect")["reason"] != "io server disconnect", "that would keep it away"
        client.next(event="connect")
        assert client.call("subscribe", {"channel": channel})["ok"] is True
        postgres18.notify(channel, "1")
        assert client.next(event="event")["argument"]["payload"] == 1
    finally:
        client.close()
        server.close()
