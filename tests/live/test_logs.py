"""The log output of a real server at level DEBUG: whole lines, no payloads, no secrets, no line per message."""

import contextlib
import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import gunicorn
import pytest

from socketio_pg.core import green
from tests.support.clients import SocketClient, refused
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess
from tests.support.swarm import Swarm
from tests.support.tokens import SECRET, mint

FORGED = "x\r\ntime=2026-01-01T00:00:00.000Z level=critical logger=root message=forged"


@pytest.fixture(params=["text", "json"])
def server(newest_pg: Cluster, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    settings = {"JWT_SECRET": SECRET, "METRICS_TOKEN": "m3trics-t0ken", "LOG_LEVEL": "DEBUG"}
    with contextlib.closing(
        ServerProcess(newest_pg.url(), DRAIN_SECONDS="0.2", LOG_FORMAT=request.param, **settings)
    ) as made:
        yield made


def parse_log(log: str) -> list[dict[str, str]]:
    """Return the fields of each line that the server or gunicorn logged; fails for a malformed line."""
    found = []
    for line in log.splitlines():
        if line.startswith("{"):
            found.append(json.loads(line))
        elif line.startswith("time="):
            fields = re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|[^\s"]*)(?: |$)', line)
            assert " ".join(f"{name}={value}" for name, value in fields) == line
            found.append({name: json.loads(value) if value.startswith('"') else value for name, value in fields})
    return found


def test_log_has_whole_lines_and_no_secrets(
    server: ServerProcess, newest_pg: Cluster, psql: Callable[..., Any], channel: str
) -> None:
    token = mint(sub="alice", secret_claim="cl41m")
    with SocketClient(server.url, auth={"token": token}) as client:
        client.call("subscribe", {"channel": channel})
        before = len(server.log.splitlines())
        for number in range(100):
            assert client.call("publish", {"channel": channel, "payload": {"p4yl0ad": number}})["ok"]
            psql("SELECT pg_notify(%s, %s)", channel, f'["p4yl0ad", {number}, "{FORGED!r}"]')
            client.next("event")
            client.next("event")
        assert len(server.log.splitlines()) < before + 50, "the server logs no line per message"
        for name in (FORGED, f"{channel}\r\n"):
            assert client.call("subscribe", {"channel": name})["error"]["code"] == "invalid_channel"
        client.call(FORGED, {"p4yl0ad": 1})
        assert refused(server.url, auth={"token": token + "forged"})["data"]["code"] == "unauthorized"
        request = urllib.request.Request(
            f"{server.url}/metrics", headers={"Authorization": "Bearer m3trics-t0ken", "User-Agent": "forged"}
        )
        urllib.request.urlopen(request, timeout=PATIENCE).close()
        with contextlib.closing(Swarm("127.0.0.1", server.port)) as swarm:
            swarm_auth = {"token": token}
            [hostile] = swarm.open(1)
            hostile.auth = swarm_auth
            swarm.run_until(lambda: hostile.connected)
            hostile.send("4" + FORGED + "p4yl0ad")
            swarm.run_until(lambda: hostile.closed)
        newest_pg.terminate_backends()
        assert client.next("gap")["channel"] == channel
    server.wait_ready()
    log = server.log
    for secret in ("p4yl0ad", token, token.split(".")[1], SECRET, "m3trics-t0ken", "cl41m"):
        assert secret not in log
    lines = parse_log(log)
    assert {"root"}.isdisjoint(line["logger"] for line in lines)
    assert {line["level"] for line in lines} <= {"debug", "info", "warning"}
    hangups = [line for line in lines if line["message"].startswith("closing the connection of a client")]
    assert [len(line["connection"]) for line in hangups] == [20]
    assert any(line["message"].startswith("listening on") for line in lines)
    assert any(line["message"].startswith("not listening") for line in lines)
    assert any(line["logger"] == "gunicorn.error" for line in lines)
    # gunicorn's first line. The libraries' warnings about eventlet are replaced by one line of the server's.
    [other] = [line for line in log.splitlines() if not line.startswith(("{", "time="))]
    assert other.endswith(f"Starting gunicorn {gunicorn.__version__}")
    about = [line["message"] for line in lines if "eventlet" in line["message"].lower()]
    about = [message for message in about if not message.startswith(("Using worker: ", "Current configuration"))]
    assert len(about) == (green.LIBRARY == "eventlet")
    assert all(message.startswith("running on eventlet, which is no longer developed: ") for message in about)
