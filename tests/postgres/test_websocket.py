"""SocketServer on a user's Flask application, with Flask-SocketIO's test client, in this process."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from flask import Flask, request

from socketio_pg.app import create_app
from socketio_pg.core import green
from socketio_pg.core.channels import RESERVED_PREFIX
from socketio_pg.websocket import SocketServer
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster, own_listener


@pytest.fixture
def server(postgres: Cluster) -> Iterator[SocketServer]:
    app = Flask("users_app")

    @app.get("/")
    def index() -> str:
        return "my own page"

    made = SocketServer(app=app, dsn=postgres.url(), test=True)
    own_listener(made.pubsub).unlisten_grace = 0.2
    yield made
    made.shutdown()


def open_client(server: SocketServer) -> Any:
    """Return Flask-SocketIO's test client. Its events are handled in green threads, as those of real clients are."""
    client = server.socketio.test_client(server.app)
    server.socketio.server.async_handlers = True  # test_client() turns this off
    return client


def received(client: Any, event: str, number: int = 1) -> list[Any]:
    """Wait for ``number`` events and return their arguments."""
    found: list[Any] = []
    with green.timeout(PATIENCE):
        while len(found) < number:
            green.sleep(0.005)
            found += [packet["args"][0] for packet in client.get_received() if packet["name"] == event]
    return found


def not_reserved(channels: Iterable[str]) -> set[str]:
    """Return the channels without those of the server's own parts."""
    return {channel for channel in channels if not channel.startswith(RESERVED_PREFIX)}


def wait_until_clean(server: SocketServer) -> None:
    """Wait until no subscriber, channel, LISTEN or room is left."""
    listener = own_listener(server.pubsub)
    with green.timeout(PATIENCE):
        while not_reserved(listener._listening) or listener._pending or listener._leaving:
            green.sleep(0.01)
    assert len(server.pubsub.hub) == 0
    assert server.pubsub.hub.channels() == set()
    assert not_reserved(listener._wanted) == set()
    # Parts of the server may still be waiting for their own channels.
    assert not_reserved(listener._waiters._events) == set()
    assert server.socketio.server.manager.rooms == {}


def test_server_runs_on_an_existing_application(server: SocketServer, channel: str) -> None:
    assert server.app.test_client().get("/").text == "my own page"
    assert server.app.test_client().get("/static/test.html").status_code == 404
    client = open_client(server)
    client.emit("subscribe", {"channel": channel})
    assert received(client, "subscribed") == [{"channel": channel}]
    client.emit("test_pub", {"channel": channel, "payload": {"a": 1}})
    assert received(client, "event") == [{"channel": channel, "payload": {"a": 1}}]


def test_test_pub_answers_published(server: SocketServer, channel: str) -> None:
    client = open_client(server)
    client.emit("test_pub", {"channel": channel, "payload": 1})
    assert received(client, "published") == [{"channel": channel}]


def test_application_handlers_run_in_addition(server: SocketServer, channel: str) -> None:
    seen = []

    @server.socketio.on("connect")
    def connect() -> None:
        seen.append(("connect", request.sid))  # type: ignore[attr-defined]

    @server.socketio.on("disconnect")
    def disconnect() -> None:
        seen.append(("disconnect", request.sid))  # type: ignore[attr-defined]

    @server.socketio.on("mine")
    def mine(argument: Any) -> str:
        return f"got {argument}"

    client = open_client(server)
    assert received(client, "server_hello")[0]["sid"] == seen[0][1]
    client.emit("subscribe", {"channel": channel})
    received(client, "subscribed")
    server.socketio.emit("event", {"from": "application"}, to=channel)
    assert received(client, "event") == [{"from": "application"}]
    client.disconnect()
    assert [name for name, _ in seen] == ["connect", "disconnect"]
    wait_until_clean(server)


def test_test_page_is_served(postgres: Cluster) -> None:
    server = SocketServer(app=Flask("users_app", static_folder=None), dsn=postgres.url(), enable_test_page=True)
    browser = server.app.test_client()
    with browser.get("/socket-test", follow_redirects=True) as page:
        assert page.status_code == 200
        assert b"test.js" in page.data
    server.shutdown()


def test_create_app_returns_a_ready_application(postgres: Cluster) -> None:
    app = create_app(database_url=postgres.url(), log_level="WARNING")
    server = app.extensions["socketio_pg"]
    assert isinstance(server, SocketServer)
    with green.timeout(PATIENCE):
        while app.test_client().get("/readyz").status_code != 200:
            green.sleep(0.01)
    server.shutdown()
    assert server.readiness()["process"] == "shutting down"
    refused = app.test_client().get("/api/openapi.json")
    assert (refused.status_code, refused.get_json()["error"]["code"]) == (503, "database_unavailable")
    assert app.test_client().get("/healthz").get_data() == b"the server is shutting down"


def test_disconnect_before_subscribe_is_handled(server: SocketServer, channel: str) -> None:
    client = open_client(server)
    client.emit("subscribe", {"channel": channel})  # its green thread has not run yet
    client.disconnect()
    assert server.pubsub.hub.channels() == set()
    green.sleep(0.1)  # now it runs, after the disconnect
    wait_until_clean(server)
    assert not_reserved(own_listener(server.pubsub)._wanted) == set(), "no LISTEN for a disconnected client"


def test_disconnect_during_subscribe(server: SocketServer, channel: str) -> None:
    client = open_client(server)
    client.emit("subscribe", {"channel": channel})
    green.sleep()  # the handler now waits for the LISTEN
    assert server.pubsub.hub.channels() == {channel}
    client.disconnect()
    wait_until_clean(server)


def test_unsubscribe_during_subscribe(server: SocketServer, channel: str) -> None:
    client = open_client(server)
    client.emit("subscribe", {"channel": channel})
    green.sleep()
    client.emit("unsubscribe", {"channel": channel})
    errors = received(client, "error")
    assert [error["code"] for error in errors] == ["invalid_request"]
    client.disconnect()
    wait_until_clean(server)


def test_disconnect_after_subscribe(server: SocketServer, channel: str) -> None:
    clients = [open_client(server) for _ in range(3)]
    for client in clients:
        client.emit("subscribe", {"channel": channel})
        received(client, "subscribed")
    for client in clients[:2]:
        client.disconnect()
    server.pubsub.publish(channel, 1)
    assert received(clients[2], "event") == [{"channel": channel, "payload": 1}]
    (sid,) = server.pubsub.hub._subscribers
    server.socketio.server.disconnect(str(sid))
    wait_until_clean(server)


def test_two_clients_share_one_listen(server: SocketServer, channel: str) -> None:
    executed: list[str] = []
    listener = own_listener(server.pubsub)
    original = listener._execute

    def recording(connection: Any, sql: str, seconds: float | None = None) -> None:
        executed.append(sql)
        original(connection, sql, seconds)

    listener._execute = recording  # type: ignore[method-assign]
    clients = [open_client(server) for _ in range(2)]
    for client in clients:
        client.emit("subscribe", {"channel": channel})
    for client in clients:
        received(client, "subscribed")
    for client in clients:
        client.disconnect()
    wait_until_clean(server)
    mine = [sql for batch in executed for sql in batch.split(";") if channel in sql]
    assert mine == [f'LISTEN "{channel}"', f'UNLISTEN "{channel}"']


def test_failed_listen_leaves_nothing_behind(server: SocketServer, channel: str) -> None:
    server.pubsub.subscribe_timeout_down = 0.2
    server.pubsub.start = lambda: None  # type: ignore[method-assign]
    client = open_client(server)
    client.emit("subscribe", {"channel": channel})
    (error,) = received(client, "error")
    assert error == {
        "code": "database_unavailable",
        "message": "cannot listen to the database at the moment: not started",
        "channel": channel,
    }
    client.disconnect()
    assert server.pubsub.hub.channels() == set()
    assert not_reserved(own_listener(server.pubsub)._wanted) == set()
