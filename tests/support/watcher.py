"""A client that watches a channel's members, without a connection: it does what docs/presence.md says."""

from typing import Any

import orjson


class Watcher:
    """The members of a channel as one client knows them."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.members: dict[str, Any] | None = None
        self.replace(state)

    def replace(self, state: dict[str, Any]) -> None:
        state = orjson.loads(orjson.dumps(state))
        self.version, self.count = state["version"], state["count"]
        self.members = None
        if "members" in state:
            self.members = {one["key"]: one for one in state["members"]}

    def apply(self, body: dict[str, Any]) -> None:
        body = orjson.loads(orjson.dumps(body))
        assert body["previous"] == self.version
        self.version, self.count = body["version"], body["count"]
        if "joined" not in body:
            self.members = None
            return
        assert self.members is not None
        keys = [one["key"] for name in ("joined", "updated", "left") for one in body[name]]
        assert len(keys) == len(set(keys))
        for one in body["joined"] + body["updated"]:
            assert one["metas"]
            self.members[one["key"]] = one
        for one in body["left"]:
            assert one["metas"]
            self.members.pop(one["key"], None)
