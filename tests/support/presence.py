"""The stock JavaScript client, which joins channels and keeps their members as docs/presence.md says."""

import json
from typing import Any

from tests.support import asyncapi
from tests.support.node import NodeClient


class Person(NodeClient):
    """A client in one channel. ``options`` are those of Socket.IO's ``io()``."""

    def __init__(self, url: str, auth: dict[str, Any] | None = None, *, recovery: bool = False, **options: Any) -> None:
        auth = {"recovery": recovery, **(auth or {})}
        super().__init__(url, "websocket", "recovery.mjs", json.dumps({"auth": auth, **options}))
        self.hello = self.connected()
        self.members: dict[str, Any] = {}
        self.version = -1
        self.count = 0
        #: Changes that the client was told, in words.
        self.told: list[str] = []

    def connected(self) -> dict[str, Any]:
        """Wait for the next connection. Return the argument of `server_hello`."""
        self.next(event="connect")
        hello: dict[str, Any] = self.next(event="server_hello")["argument"]
        return hello

    def join(self, channel: str, presence: Any, **more: Any) -> dict[str, Any]:
        """Subscribe with presence. Return the field of the answer."""
        answer = self.call("subscribe", {"channel": channel, "presence": presence, **more})
        assert answer["ok"], answer
        asyncapi.check("subscribe_acknowledgement", answer)
        found: dict[str, Any] = answer["presence"]
        if "version" in found:
            self.replace(found)
        return found

    def replace(self, state: dict[str, Any]) -> None:
        self.version, self.count = state["version"], state["count"]
        self.members = {one["key"]: one for one in state.get("members", ())}

    def take(self) -> None:
        """Wait for the next event about members, and apply it."""
        line = self._next_of("presence", "presence_state", "presence_ended")
        body = line["argument"]
        asyncapi.check(line["event"], body)
        if line["event"] == "presence_ended":
            self.told.append(f"ended {body['reason']}")
        elif line["event"] == "presence_state":
            self.told.append("state")
            self.replace(body)
        elif body["version"] > self.version:
            assert body["previous"] == self.version
            self.version, self.count = body["version"], body["count"]
            for name in ("joined", "updated", "left"):
                for one in body.get(name, ()):
                    self.told.append(f"{name} {one['key']}")
                    if name == "left":
                        self.members.pop(one["key"], None)
                    else:
                        self.members[one["key"]] = one
            if "joined" not in body:
                self.told.append(f"count {body['count']}")
                self.members = {}
        assert len(self.members) in (self.count, 0)

    def states(self) -> dict[str, list[Any]]:
        """Return the states of each member's connections."""
        return {key: [meta["state"] for meta in one["metas"]] for key, one in self.members.items()}

    def wait_members(self, expected: dict[str, list[Any]]) -> None:
        """Wait until the client has been told exactly these members, with the states of their connections."""
        while self.states() != expected:
            self.take()

    def _next_of(self, *events: str) -> dict[str, Any]:
        for index, earlier in enumerate(self.lines):
            if earlier.get("event") in events:
                return self.lines.pop(index)
        assert self._process.stdout is not None
        for text in self._process.stdout:
            line: dict[str, Any] = json.loads(text)
            if line.get("event") in events:
                return line
            self.lines.append(line)
        raise AssertionError(f"the client ended without {events}; it printed {self.lines}")
