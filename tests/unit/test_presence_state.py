"""The members that clients keep of a channel, in Python and JavaScript, against a model of the server."""

import json
import shutil
import subprocess
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.subscriber.presence_state import PresenceState
from tests.support.missing import missing
from tests.support.server import ROOT

#: More members than these are only counted.
MOST = 3
#: Keys come from users.
KEYS = ("ann", "__proto__", "constructor", "")

#: What happens, with a number that chooses among keys, connections or states.
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["join", "join", "update", "leave", "flush", "flush", "lose", "answer", "reconnect"]),
        st.integers(0, 9),
    ),
    max_size=40,
)

#: The histories so far, and what the Python class has made of each step: for JavaScript.
recorded: list[tuple[list[Any], list[Any]]] = []


class Server:
    """The connections of one channel, and the differences since the last flush."""

    def __init__(self) -> None:
        self.metas: dict[str, tuple[str, dict[str, Any]]] = {}
        self._sent = dict(self.metas)
        self.version = 0
        self._refs = 0

    def change(self, step: str, number: int) -> None:
        refs = sorted(self.metas)
        if step == "join":
            self._refs += 1
            meta = {"ref": f"r{self._refs}", "client": "c", "state": {"n": number}, "joined_at": "…"}
            self.metas[f"r{self._refs}"] = (KEYS[number % len(KEYS)], meta)
        elif refs and step == "update":
            ref = refs[number % len(refs)]
            key, meta = self.metas[ref]
            self.metas[ref] = (key, {**meta, "state": {"__proto__": number}})
        elif refs and step == "leave":
            del self.metas[refs[number % len(refs)]]

    def _members(self, metas: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, meta in metas.values():
            found.setdefault(key, {"key": key, "metas": []})["metas"].append(meta)
        return found

    @property
    def members(self) -> dict[str, Any]:
        return self._members(self.metas)

    def state(self) -> dict[str, Any]:
        """As the answer to a request: without what comes with the next difference."""
        sent = self._members(self._sent)
        listed = {"members": list(sent.values())} if len(sent) <= MOST else {}
        return {"channel": "room", "version": self.version, "count": len(sent), **listed}

    def flush(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the events with the difference since the last one."""
        old, new = self._members(self._sent), self.members
        if old == new:
            return []
        self._sent, self.version = dict(self.metas), self.version + 1
        difference = {"channel": "room", "version": self.version, "previous": self.version - 1, "count": len(new)}
        if len(new) > MOST:
            return [("apply", difference)]
        if len(old) > MOST:
            return [("sync", self.state())]
        lists = {
            "joined": [new[key] for key in new.keys() - old.keys()],
            "updated": [new[key] for key in new.keys() & old.keys() if new[key] != old[key]],
            "left": [old[key] for key in old.keys() - new.keys()],
        }
        return [("apply", difference | lists)]


class Client:
    """A PresenceState, its history, and a copy of the members that only its changes change."""

    def __init__(self) -> None:
        self.state = PresenceState()
        self.history: list[Any] = []
        self.results: list[Any] = []
        self._copy: dict[str, Any] = {}

    def call(self, method: str, *values: Any) -> None:
        was_complete = self.state.complete
        changes = getattr(self.state, method)(*values) or []
        if not was_complete or not self.state.complete:
            assert method == "sync" or not changes
            self._copy = dict(self.state.members)
        else:
            for change in changes:
                key = change.member["key"]
                before = self._copy.pop(key, None)
                assert change.before == before
                assert (change.kind == "join") is (before is None)
                if change.kind != "leave":
                    assert change.member != before
                    self._copy[key] = change.member
            assert states(self._copy) == states(self.state.members)
        self._copy = dict(self.state.members)
        self.history.append([method, *values])
        self.results.append(
            {
                "changes": [
                    {"kind": one.kind, "member": one.member} | ({"before": one.before} if one.before else {})
                    for one in changes
                ],
                "current": self.state.current,
                "complete": self.state.complete,
                "count": self.state.count,
                "members": [list(item) for item in self.state.members.items()],
            }
        )


def states(members: dict[str, Any]) -> dict[str, Any]:
    return {key: {meta["ref"]: meta["state"] for meta in one["metas"]} for key, one in members.items()}


@given(STEPS)
def test_members_are_those_of_the_server_whatever_is_lost(steps: list[tuple[str, int]]) -> None:
    server, client = Server(), Client()
    client.call("sync", server.state())
    for step, number in steps:
        if step in ("flush", "lose"):
            for event in server.flush():
                if step == "flush":
                    client.call(*event)
        elif step == "answer" and not client.state.current:
            client.call("sync", server.state())
        elif step == "reconnect":
            client.call("lose")
            if number % 2:
                client.call("sync", server.state())
        else:
            server.change(step, number)
    # The next difference tells whether one is missing.
    server.change("join", 0)
    for event in server.flush():
        client.call(*event)
    if not client.state.current:
        client.call("sync", server.state())
    assert client.state.current
    assert client.state.count == len(server.members)
    assert client.state.complete is (len(server.members) <= MOST)
    assert client.state.members == (server.members if client.state.complete else {})
    recorded.append((client.history, client.results))


def test_a_connection_that_has_returned_with_another_id_is_no_change() -> None:
    def member(client: str, state: object = None) -> Any:
        return {"key": "ann", "metas": [{"ref": "r", "client": client, "state": state, "joined_at": "…"}]}

    state = PresenceState()
    assert state.sync({"version": 1, "count": 1, "members": [member("a")]}) == []
    state.lose()
    assert state.sync({"version": 1, "count": 1, "members": [member("b")]}) == []
    assert state.members["ann"]["metas"][0]["client"] == "b"
    state.lose()
    [change] = state.sync({"version": 1, "count": 1, "members": [member("c", "away")]})
    assert (change.kind, change.before, change.member) == ("update", member("b"), member("c", "away"))


def test_javascript_does_the_same_as_python() -> None:
    node = shutil.which("node")
    if node is None:
        missing("the test of socketio_pg.js", "install Node")
    test_members_are_those_of_the_server_whatever_is_lost()
    done = subprocess.run(
        [node, str(ROOT / "tests" / "unit" / "presence_state.mjs")],
        input=json.dumps([history for history, _ in recorded]), capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    for (history, expected), found in zip(recorded, json.loads(done.stdout), strict=True):
        assert found == expected, history
