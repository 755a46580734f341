"""The stock JavaScript client, which recovers its session, under Node."""

import json
from typing import Any

from tests.support.node import NodeClient


class RecoveringClient(NodeClient):
    """Runs `recovery.mjs`. ``options`` are those of Socket.IO's ``io()``."""

    def __init__(self, url: str, transports: str = "websocket", **options: Any) -> None:
        super().__init__(url, transports, "recovery.mjs", json.dumps(options))
        self.hello = self.connected()

    def connected(self) -> dict[str, Any]:
        """Wait for the next connection. Return the argument of `server_hello`, with ``pid`` and ``recovered``."""
        connect = self.next(event="connect")
        hello: dict[str, Any] = self.next(event="server_hello")["argument"]
        assert connect["id"] == hello["sid"]
        assert connect["recovered"] == hello["recovery"]["recovered"], (connect, hello)
        return hello | {"pid": connect.get("pid"), "recovered": connect["recovered"]}

    def subscribe(self, channel: str, **more: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.call("subscribe", {"channel": channel, **more})
        assert answer["ok"] is True, answer
        return answer

    def cut(self, url: str | None = None) -> None:
        """Break the connection; the client connects again, to ``url``."""
        self.send({"cut": True, "url": url})

    def numbers(self, count: int) -> list[int]:
        """Return the payloads of the next events."""
        return [self.next(event="event")["argument"]["payload"][0] for _ in range(count)]
