"""Sessions that are not recovered, or not whole: tokens, permissions, NOTIFY, and an expired session."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.clients import SocketClient
from tests.support.log import Log, wait_installed
from tests.support.patience import until
from tests.support.postgres import Cluster
from tests.support.recovery import RecoveringClient
from tests.support.server import ServerProcess
from tests.support.tokens import SECRET, ending_soon, mint


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(
        newest_pg, "recovery_rules", AUTO_INIT="1", DURABLE_CHANNELS="test-*", JWT_SECRET=SECRET, AUTH="optional",
        AUTHORIZATION="claims", PUBLIC_CHANNELS="*", JWT_LEEWAY="0",
    )  # fmt: skip
    try:
        wait_installed(made)
        yield made
    finally:
        made.server.close()


@pytest.fixture(scope="module")
def strict(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(
        newest_pg, "recovery_strict", AUTO_INIT="1", DURABLE_CHANNELS="*", JWT_SECRET=SECRET, AUTHORIZATION="claims",
        JWT_LEEWAY="0",
    )  # fmt: skip
    try:
        yield made
    finally:
        made.server.close()


def _token(*channels: str, sub: str = "ann", **claims: Any) -> dict[str, str]:
    return {"token": mint(sub=sub, subscribe=list(channels), **claims)}


def test_the_token_of_the_new_connection_counts(strict: Log, channel: str) -> None:
    other = f"{channel} too"
    client = RecoveringClient(strict.server.url, auth=_token(channel, other))
    try:
        client.subscribe(channel)
        client.subscribe(other)
        client.send({"auth": _token(other), "desert": True})
        strict.publish(channel, 1, 1)
        strict.publish(other, 2, 2)
        assert client.connected()["recovered"]
        assert client.next(event="unsubscribed")["argument"] == {"channel": channel, "reason": "forbidden"}
        assert client.numbers(1) == [2]
        client.send({"auth": _token(other, sub="eve"), "desert": True})
        hello = client.connected()
        assert (hello["client"], hello["recovery"]) == ("eve", {"recovered": False, "reason": "other_client"})
        # Eve has a session of her own, and Ann's is that of Ann.
        client.send({"cut": True})
        assert client.connected()["recovered"]
    finally:
        client.close()


def test_a_session_ends_with_its_token(strict: Log, channel: str) -> None:
    client = RecoveringClient(strict.server.url, auth=_token(channel))
    try:
        client.subscribe(channel)
        ending_soon(lambda exp: client.call("authenticate", _token(channel, exp=exp))["ok"] or None)
        assert client.next(event="error")["argument"]["code"] == "unauthorized"
        assert client.connected()["recovery"] == {"recovered": False, "reason": "unknown_session"}
    finally:
        client.close()


def test_notify_messages_cannot_be_recovered(log: Log, channel: str) -> None:
    client = RecoveringClient(log.server.url)
    try:
        client.subscribe(channel)
        client.subscribe("plain")
        client.cut()
        hello = client.connected()
        assert hello["recovery"] == {"recovered": False, "reason": "notify", "channels": ["plain"]}
        gap = client.next(event="gap")["argument"]
        assert (gap["channel"], gap["reason"]) == ("plain", "reconnected")
        # A channel that matches DURABLE_CHANNELS, and carries a NOTIFY message nevertheless.
        client.subscribe(channel)
        client.cut()
        assert client.connected()["recovered"]
        log.sql("SELECT pg_notify(%s, '[7]')", channel)
        assert client.numbers(1) == [7]
        client.cut()
        assert client.connected()["recovery"]["channels"] == [channel]
    finally:
        client.close()


def test_sessions_are_stored_for_a_limited_time(log: Log, channel: str) -> None:
    count = "SELECT count(*) FROM socketio_pg.session WHERE subscriptions LIKE '%%' || %s || '%%'"
    # Only this server: on a busy machine the clients of the other tests return later.
    with contextlib.closing(ServerProcess(log.url, DURABLE_CHANNELS="test-*", RECOVERY_SECONDS="3")) as server:
        client = RecoveringClient(server.url)
        try:
            client.subscribe(channel)
            until(lambda: log.sql(count, channel) == [(1,)], "the session is stored")
            client.cut("http://127.0.0.1:9")
            until(lambda: log.sql(count, channel) == [(0,)], "the session is deleted")
            client.send({"url": server.url})
            assert client.connected()["recovery"] == {"recovered": False, "reason": "unknown_session"}
        finally:
            client.close()


def test_a_foreign_offset_is_refused_and_the_applications_events_have_one(log: Log, channel: str) -> None:
    client = RecoveringClient(log.server.url)
    try:
        client.subscribe(channel)
        for line in ("subscribed",):
            [offset] = client.next(event=line)["more"]
            assert offset.startswith("r1:")
        client.send({"auth": {"offset": "a foreign text"}, "cut": True})
        assert client.connected()["recovery"] == {"recovered": False, "reason": "unknown_offset"}
    finally:
        client.close()


def test_clients_that_do_not_ask_get_no_offsets(log: Log, channel: str) -> None:
    with SocketClient(log.server.url) as client:
        assert "recovery" not in client.next("server_hello")
        assert client.call("subscribe", {"channel": channel})["ok"]
        log.publish(channel, 1, 1)
        assert client.next("event")["payload"] == [1, ""]  # its recorder takes one argument
