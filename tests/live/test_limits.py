"""Limits at a real server: per client, per address, in total; origins, headers, metrics, and path traversal."""

import contextlib
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.clients import SocketClient, code, refused
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.raw_http import GOOD, WEBSOCKET, WebSocket, http
from tests.support.server import PATIENT, ServerProcess
from tests.support.swarm import Swarm
from tests.support.tokens import SECRET, mint

TOKEN = "of-the-metrics"


def running(cluster: Cluster, **settings: str) -> contextlib.closing[ServerProcess]:
    return contextlib.closing(ServerProcess(cluster.url(), DRAIN_SECONDS="0.2", METRICS_TOKEN=TOKEN, **settings))


def get(server: ServerProcess, path: str, **headers: str) -> tuple[int, Any, str]:
    """Return (status, headers, body)."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(server.url + path, headers=names), timeout=PATIENCE
        ) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read().decode()


def metric(server: ServerProcess, name: str) -> float:
    """Return the value of ``name{label="…"}``, 0 if it was never counted."""
    status, _, text = get(server, "/metrics", Authorization=f"Bearer {TOKEN}")
    assert status == 200
    lines = [line for line in text.splitlines() if line.startswith(name + " ")]
    return float(lines[0].split()[1]) if lines else 0.0


# -- per client --------------------------------------------------------------------------------------------------------


def test_subscriptions_per_client_are_limited(newest_pg: Cluster) -> None:
    with running(newest_pg, MAX_SUBSCRIPTIONS="3") as server, SocketClient(server.url) as client:
        assert [code(client.call("subscribe", {"channel": name})) for name in "abcd"] == [
            None, None, None, "too_many_subscriptions",
        ]  # fmt: skip
        # A repeated subscription does not count, and unsubscribing makes room for another.
        assert code(client.call("subscribe", {"channel": "a"})) is None
        client.call("unsubscribe", {"channel": "a"})
        assert code(client.call("subscribe", {"channel": "d"})) is None
        newest_pg.notify("d", "1")
        assert client.next("event")["payload"] == 1
        assert metric(server, 'socketio_pg_errors_total{code="too_many_subscriptions"}') == 1


def test_flood_of_events_is_refused_and_then_disconnected(newest_pg: Cluster) -> None:
    """A client that floods gets errors, then is disconnected. Another client is not affected."""
    with running(newest_pg, MAX_EVENTS_PER_SECOND="10") as server, SocketClient(server.url) as other:
        swarm = Swarm("127.0.0.1", server.port)
        [flood] = swarm.connect(1)
        flood.send_all(*[f'42{number}["unsubscribe",{{"channel":"foo"}}]' for number in range(90)])
        swarm.run_until(lambda: len([packet for packet in flood.packets if packet.startswith("3")]) == 90)
        answers = [json.loads(packet[packet.index("[") :])[0] for packet in flood.packets if packet.startswith("3")]
        assert 50 <= len([answer for answer in answers if answer["ok"]]) < 90
        assert {code(answer) for answer in answers} == {None, "rate_limited"}
        # Unknown, reserved and invalid events count as well.
        flood.send_all(*['42["nothing"]', '42["connect"]', "42[7]"] * 50)
        swarm.run_until(lambda: flood.closed)
        assert any(event["code"] == "rate_limited" for event in flood.events("error"))
        other.subscribe("foo")
        newest_pg.notify("foo", "1")
        assert other.next("event")["payload"] == 1
        assert metric(server, 'socketio_pg_errors_total{code="rate_limited"}') > 10
        assert metric(server, 'socketio_pg_cut_off_total{reason="rate_limited"}') == 1
        swarm.close()


def test_events_count_in_any_namespace(newest_pg: Cluster) -> None:
    """Also in those that the client is not connected to: nothing of these is answered or parsed."""
    with running(newest_pg, app="tests.support.watched_app:app", MAX_EVENTS_PER_SECOND="10") as server:
        kinds = (("40", "42/nowhere,"), ("40/custom,", "42/custom,"), ("40/custom,", "42"))
        for number, (connect, event) in enumerate(kinds, 1):
            with WebSocket(server) as flood:
                flood.text(connect)
                assert flood.read_text().startswith("0{")
                while not flood.read_text().startswith(connect):
                    pass  # the application's connect handler emits
                with contextlib.suppress(ConnectionError):
                    for _ in range(300):
                        flood.text(f'{event}["nothing"]')
                assert flood.closed()
            assert metric(server, 'socketio_pg_cut_off_total{reason="rate_limited"}') >= number


def test_packets_that_are_ignored_are_not_parsed(newest_pg: Cluster) -> None:
    """60 MB of them took 2.5 s of CPU, since no limit counted them."""
    with running(newest_pg) as server, WebSocket(server) as one:
        one.connect()
        # Invalid JSON would close the connection.
        invalid = "[" * 2_000
        one.text(f"42/nowhere,{invalid}")
        one.text(f"43{invalid}")
        one.text(f"4399{invalid}")
        one.text(f"43/nowhere,99{invalid}")
        one.text('427["unsubscribe",{"channel":"foo"}]')
        while not (text := one.read_text()).startswith("437"):
            assert not text.startswith('42["error"'), text


def test_published_bytes_per_second_are_limited(newest_pg: Cluster) -> None:
    settings = {"MAX_EVENT_BYTES_PER_SECOND": "1000", "MAX_PAYLOAD": "1000"}
    with running(newest_pg, **settings) as server, SocketClient(server.url) as client:
        answers = client.call_together("publish", [{"channel": "foo", "payload": "x" * 900}] * 20)
        codes = [code(answer) for answer in answers]
        assert codes.count(None) >= 5
        assert set(codes) == {None, "rate_limited"}

        # A second later the client may publish again, on the same connection.
        def fits() -> bool:
            client.io.sleep(0.05)  # a client that does not wait at all is disconnected
            return code(client.call("publish", {"channel": "foo", "payload": "x" * 900})) is None

        until(fits, "room for one more")


def test_idle_client_is_disconnected(newest_pg: Cluster) -> None:
    with running(newest_pg, IDLE_TIMEOUT="5") as server, SocketClient(server.url) as subscriber:
        subscriber.subscribe("foo")
        began = time.monotonic()
        with SocketClient(server.url, reconnection=False) as idle:
            assert idle.next("error") == {"code": "idle_timeout", "message": "nothing was heard for too long"}
            idle.next("disconnect")
            assert time.monotonic() - began > 4.5
        newest_pg.notify("foo", "1")
        assert subscriber.next("event")["payload"] == 1
        assert metric(server, 'socketio_pg_cut_off_total{reason="idle_timeout"}') == 1


def test_connections_without_a_client_time_out(newest_pg: Cluster) -> None:
    with running(newest_pg, CONNECT_TIMEOUT="6") as server, Swarm("127.0.0.1", server.port) as swarm:
        [silent] = swarm.open(1)
        silent.answers_connect = False
        # A client that leaves its namespace counts as unconnected again.
        [leaving] = swarm.connect(1)
        leaving.send("41")
        # Long-polling times out, too.
        status, _, body = get(server, "/socket.io/?EIO=4&transport=polling")
        assert status == 200
        sid = json.loads(body[1:])["sid"]
        swarm.run_until(lambda: silent.closed and leaving.closed)
        until(lambda: get(server, f"/socket.io/?EIO=4&transport=polling&sid={sid}")[0] != 200, "the session's end")
        assert metric(server, 'socketio_pg_cut_off_total{reason="connect_timeout"}') == 3


def test_slow_consumer_is_counted(newest_pg: Cluster) -> None:
    with running(newest_pg, SEND_BUFFER_BYTES="10000", **PATIENT) as server:
        swarm = Swarm("127.0.0.1", server.port)
        [slow] = swarm.connect(1, receive_buffer=2048)
        slow.emit("subscribe", {"channel": "foo"}, 1)
        swarm.run_until(lambda: bool(slow.events("subscribed")))
        deadline = time.monotonic() + 2 * PATIENCE
        while not metric(server, 'socketio_pg_cut_off_total{reason="slow_consumer"}'):
            newest_pg.sql("SELECT pg_notify('foo', repeat('x', 7000) || n) FROM generate_series(1, 100) AS n")
            assert time.monotonic() < deadline
        swarm.close()


# -- per address -------------------------------------------------------------------------------------------------------


def polling_status(server: ServerProcess, **headers: str) -> int:
    return get(server, "/socket.io/?EIO=4&transport=polling", **headers)[0]


def test_connections_per_address_are_limited(newest_pg: Cluster) -> None:
    with running(newest_pg, MAX_CONNECTIONS_PER_ADDRESS="2") as server:
        with SocketClient(server.url) as first, SocketClient(server.url, ("polling",)) as second:
            assert polling_status(server) == 429
            # Without a trusted proxy, X-Forwarded-For is ignored.
            assert polling_status(server, X_Forwarded_For="203.0.113.1") == 429
            # A parameter that only looks like a session ID does not bypass the limit.
            assert get(server, "/socket.io/?EIO=4&transport=polling&nosid=1")[0] == 429
            for client in (first, second):
                client.subscribe("foo")
        until(lambda: polling_status(server) == 200, "the two connections' end")
        assert metric(server, 'socketio_pg_refused_connections_total{reason="address_connections"}') >= 2


def test_limits_use_the_address_from_a_trusted_proxy(newest_pg: Cluster) -> None:
    with running(newest_pg, MAX_CONNECTIONS_PER_ADDRESS="1", TRUSTED_PROXIES="1") as server:
        assert polling_status(server, X_Forwarded_For="203.0.113.1") == 200
        assert polling_status(server, X_Forwarded_For="203.0.113.1") == 429
        # Entries before the proxy's own are forged by the client.
        assert polling_status(server, X_Forwarded_For="6.6.6.6, 203.0.113.1") == 429
        assert polling_status(server, X_Forwarded_For="203.0.113.2") == 200


def test_attempts_per_address_are_limited(newest_pg: Cluster) -> None:
    with running(newest_pg, MAX_ATTEMPTS_PER_SECOND_PER_ADDRESS="1") as server:
        assert [polling_status(server) for _ in range(5)] == [200] * 5
        until(lambda: polling_status(server) == 429, "a refused attempt")
        assert metric(server, 'socketio_pg_refused_connections_total{reason="address_attempts"}') > 0


def test_total_connections_are_limited(newest_pg: Cluster) -> None:
    server = ServerProcess(newest_pg.url(), "-w", "1", METRICS_TOKEN=TOKEN, MAX_CONNECTIONS="2", DRAIN_SECONDS="0.2")
    with contextlib.closing(server), SocketClient(server.url):
        # A session that is not connected to a namespace makes room for the next one of its worker.
        assert [polling_status(server) for _ in range(3)] == [200] * 3
        with SocketClient(server.url):
            assert polling_status(server) == 503
        assert metric(server, 'socketio_pg_cut_off_total{reason="not_connected"}') == 3
        assert metric(server, 'socketio_pg_refused_connections_total{reason="too_many_connections"}') == 1


# -- origins -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(newest_pg: Cluster) -> Iterator[ServerProcess]:
    with running(newest_pg) as made:
        yield made


def websocket_status(server: ServerProcess, **headers: str) -> int:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return http(server, path=WEBSOCKET, headers=GOOD | names).status


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Origin": "http://127.0.0.1:{port}"}, True),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "https://evil.example", "X_Forwarded_Host": "evil.example"}, False),
        ({"Origin": "https://evil.example", "X_Forwarded_Host": "evil.example", "X_Forwarded_Proto": "https"}, False),
        ({"Origin": "http://127.0.0.1"}, False),
    ],
    ids=str,
)
def test_other_origins_are_refused(server: ServerProcess, headers: dict[str, str], allowed: bool) -> None:
    headers = {name: value.format(port=server.port) for name, value in headers.items()}
    assert polling_status(server, **headers) == (200 if allowed else 400)
    assert websocket_status(server, **headers) == (101 if allowed else 400)


def test_configured_origins_are_allowed(newest_pg: Cluster) -> None:
    with running(newest_pg, CORS_ALLOWED_ORIGINS="https://app.example") as server:
        assert websocket_status(server, Origin="https://app.example") == 101
        assert websocket_status(server, Origin="wss://app.example") == 101, "as Swift's client sends it"
        for _ in range(3):
            assert websocket_status(server, Origin="https://evil.example") == 400
        assert websocket_status(server, Origin="null") == 400
        refused = [line for line in server.log.splitlines() if "refused a page" in line]
        evil = ["'https://evil.example'" in line for line in refused].count(True)
        assert 1 <= evil <= len(server.worker_pids()), "once a minute for each origin and worker"
        assert len(refused) == evil + 1
        assert "set CORS_ALLOWED_ORIGINS=https://app.example,https://evil.example" in refused[0]
        assert "CORS_ALLOWED_ORIGINS='*'" in refused[-1]
        assert "the proxy forward the header Host" in refused[0]
        _, headers, _ = get(server, "/socket.io/?EIO=4&transport=polling", Origin="https://app.example")
        assert headers["Access-Control-Allow-Origin"] == "https://app.example"
    with running(newest_pg, CORS_ALLOWED_ORIGINS="*") as server:
        assert websocket_status(server, Origin="https://any.example") == 101


# -- pages -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/static/test.html", "/static/test.js", "/healthz", "/readyz"])
def test_pages_have_security_headers(server: ServerProcess, path: str) -> None:
    status, headers, _ = get(server, path)
    assert status == 200
    policy = dict(part.strip().partition(" ")[::2] for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize(
    "path",
    [
        "/static/../web.py", "/static/..%2fweb.py", "/static/%2e%2e/web.py", "/static/%2e%2e%2fweb.py",
        "/static/..%5cweb.py", "/static/%252e%252e%252fweb.py", "/static//etc/passwd", "/static/%2fetc%2fpasswd",
        "/static/....//web.py", "/static/test.html%00.py", "/static/", "/static/.", "/static",
    ],
)  # fmt: skip
def test_paths_outside_static_are_not_served(server: ServerProcess, path: str) -> None:
    # urllib would normalize the path.
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.split()[1] in (b"404", b"400", b"308"), answer[:200]
    assert b"Blueprint" not in answer
    assert b"root:" not in answer


def test_metrics_require_their_token(server: ServerProcess, newest_pg: Cluster) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": "Bearer "}):
        assert get(server, "/metrics", **headers)[0] == 401
    status, headers, text = get(server, "/metrics", Authorization=f"Bearer {TOKEN}")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    assert "socketio_pg_errors_total" in text
    with contextlib.closing(ServerProcess(newest_pg.url())) as without:
        assert get(without, "/metrics")[0] == 404


@pytest.mark.parametrize(("settings", "status"), [({}, 500), ({"SECRET_KEY": "of-the-tests"}, 200)], ids=str)
def test_sessions_require_a_secret_key(newest_pg: Cluster, settings: dict[str, str], status: int) -> None:
    """An application that uses sessions gets an error, not sessions that become invalid with the next start."""
    with contextlib.closing(ServerProcess(newest_pg.url(), app="tests.support.session_app:app", **settings)) as server:
        assert server.get("/remember")[0] == status
        assert ("no secret key was set" in server.log) is (status == 500)
        # Requests without a session work.
        with SocketClient(server.url) as client:
            client.subscribe("foo")


def test_refused_connections_are_counted(newest_pg: Cluster) -> None:
    with running(newest_pg, JWT_SECRET=SECRET) as server:
        refused(server.url)
        refused(server.url, auth={"token": mint(exp=1)})
        assert metric(server, 'socketio_pg_refused_connections_total{reason="unauthorized"}') == 2
