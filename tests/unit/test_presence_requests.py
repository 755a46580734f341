"""What a client requests so that it is present as the application wants it, against a model of the server."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.core.errors import ForbiddenError, InvalidRequestError, SocketIOPGError
from socketio_pg.subscriber.deliveries import Delivery
from socketio_pg.subscriber.presence_requests import Call, ChannelPresence, PresenceRequest, Watcher

OF_THE_APPLICATION = ("watch", "join", "update", "leave", "close")
OF_THE_SERVER = ("answer", "answer", "refuse", "retry", "lose", "end", "gap")

STEPS = st.lists(st.tuples(st.sampled_from((*OF_THE_APPLICATION, *OF_THE_SERVER)), st.integers(0, 5)), max_size=40)


class Server:
    """The presence of one client, as the server has it."""

    def __init__(self) -> None:
        self.joined: dict[str, Any] | None = None
        self.watches = False
        #: The client may no longer see the members.
        self.is_blind = False
        self.version = 0

    def state(self) -> dict[str, Any]:
        members = [{"key": "me", "metas": [{"ref": "r", "client": "c", **self.joined}]}] if self.joined else []
        return {"version": self.version, "count": len(members), "members": members}

    def answer(self, request: PresenceRequest) -> dict[str, Any]:
        event, body = request
        self.version += 1
        if event == "presence_get":
            assert self.watches
            return self.state()
        if event == "presence_update":
            assert self.joined is not None, "invalid_request"
            self.joined = {"state": body["state"]}
        elif event == "presence_leave":
            self.joined = None
        else:
            wish = body["presence"]
            self.joined = {"state": wish["state"]} if isinstance(wish, dict) else None
            self.watches, self.is_blind = wish is not False, False
            own = {"key": "me", "ref": "r"} if self.joined else {}
            return {"presence": {**self.state(), **own}} if self.watches else {}
        return {}


class World:
    def __init__(self) -> None:
        self.server = Server()
        self.presence = ChannelPresence("room", self._deliver)
        self.watchers: list[Watcher] = []
        self.calls: list[Call] = []
        self.members: dict[str, Any] = {}
        self.errors: list[Exception] = []

    def _deliver(self, delivery: Delivery) -> None:
        delivery.callback(delivery.argument)

    def watch(self) -> None:
        watcher = Watcher(None, None, None, self._sync, self.errors.append)
        self.watchers.append(watcher)
        self.presence.add(watcher)

    def _sync(self, members: dict[str, Any]) -> None:
        self.members = members

    def step(self, step: str, number: int) -> None:
        presence = self.presence
        watcher = self.watchers[number % len(self.watchers)] if self.watchers else None
        request = presence.next_request()
        if step == "watch":
            self.watch()
        elif step == "lose":
            self.server = Server()
            presence.lose()
        elif step == "end" and self.server.joined is not None:
            self.server.joined = None
            presence.receive_end({"reason": "identity_changed", "joined": False, "watching": self.server.watches})
        elif step == "gap" and self.server.watches:
            self.server.version += 2
            version = self.server.version
            lists: dict[str, Any] = {"joined": [], "updated": [], "left": []}
            presence.apply({"version": version, "previous": version - 1, "count": 0, **lists})
        elif request is not None and step == "answer":
            presence.accept(request, self.server.answer(request))
        elif request is not None and step == "refuse" and request[1].get("presence") is not False:
            if request[0] == "presence_get":
                self.server.watches, self.server.is_blind = False, True
            presence.fail(request, ForbiddenError("no"))
        elif request is not None and step == "retry":
            presence.postpone(SocketIOPGError("later"))
        elif watcher in presence.watchers and watcher is not None:
            if step == "join":
                self.calls.append(presence.join(watcher, {"state": number}))
            elif step == "leave":
                self.calls.append(presence.join(watcher, None))
            elif step == "close":
                presence.remove(watcher)
            elif step == "update":
                try:
                    self.calls.append(presence.update(watcher, number))
                except InvalidRequestError:
                    assert not isinstance(presence.wish, dict)


@given(STEPS)
def test_server_ends_up_with_what_the_application_wants(steps: list[tuple[str, int]]) -> None:
    world = World()
    world.watch()
    for step in steps:
        world.step(*step)
    for _ in range(10):
        world.step("answer", 0)
    assert world.presence.next_request() is None, "requests end"
    wish, server = world.presence.wish, world.server
    assert server.joined == ({"state": wish["state"]} if isinstance(wish, dict) else None)
    assert server.watches is (wish is not False and not server.is_blind)
    assert (world.presence.key == "me") is isinstance(wish, dict)
    assert all(call.done for call in world.calls)
    if server.watches:
        assert world.presence.state.current
        assert world.members == world.presence.state.members


def test_a_refusal_to_join_leaves_the_client_watching() -> None:
    world = World()
    world.watch()
    world.step("answer", 0)
    [watcher] = world.watchers
    call = world.presence.join(watcher, {"state": 1})
    world.step("refuse", 0)
    assert isinstance(call.error, ForbiddenError)
    assert world.errors == [call.error]
    assert (world.presence.wish, watcher.ended) == (True, False)
    assert world.presence.next_request() is None

    # One that may not see the members either is told with the next request.
    world.presence.lose()
    world.step("refuse", 0)
    assert watcher.ended
    assert world.presence.wish is False


def test_a_state_that_the_application_changes_is_sent_again() -> None:
    world = World()
    world.watch()
    [watcher] = world.watchers
    state = {"typing": False}
    world.presence.join(watcher, {"state": state})
    world.step("answer", 0)
    state["typing"] = True
    world.presence.update(watcher, state)
    assert world.presence.next_request() == ("presence_update", {"state": {"typing": True}})
    with pytest.raises(InvalidRequestError, match="JSON"):
        world.presence.update(watcher, {1, 2})


def test_a_server_without_presence_ends_it() -> None:
    world = World()
    world.watch()
    request = world.presence.next_request()
    assert request == ("subscribe", {"presence": True})
    world.presence.accept(request, {"ok": True, "channel": "room"})
    assert isinstance(world.watchers[0].error, SocketIOPGError)
    assert world.presence.next_request() is None
