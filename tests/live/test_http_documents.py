"""A real server conforms to its documents: docs/http.md, the OpenAPI document, and docs/asyncapi.yaml."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from socketio_pg.web.api_errors import BODY_STATUSES, ROUTING_STATUSES, STATUSES
from tests.support import asyncapi
from tests.support.clients import SocketClient
from tests.support.http_api import HttpApi, after, refusal
from tests.support.log import Log, wait_installed
from tests.support.missing import missing
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.server import ROOT, ServerProcess
from tests.support.tokens import SECRET, mint

PAGE = ROOT / "docs" / "http.md"


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    settings = {"MAX_EVENTS_PER_SECOND": "0", "MAX_EVENT_BYTES_PER_SECOND": "0"}
    made = Log(newest_pg, "http_documents", AUTO_INIT="1", **settings)
    wait_installed(made)
    yield made
    made.server.close()


# -- docs/http.md ------------------------------------------------------------------------------------------------------


def without_varying_values(value: Any) -> Any:
    """Return ``value`` with its epochs, positions and times masked."""
    if isinstance(value, dict):
        changing = {"epoch", "position", "published_at", "next"}
        return {name: "…" if name in changing else without_varying_values(inner) for name, inner in value.items()}
    return [without_varying_values(inner) for inner in value] if isinstance(value, list) else value


def test_documented_commands_return_the_documented_answers(log: Log) -> None:
    """The commands in the page, pasted into a shell, return the answers printed below them."""
    if shutil.which("curl") is None:
        missing("the examples of docs/http.md", "install curl")
    pairs = re.findall(r"```sh\n(.*?)```\n\n(?:(?!```)[^\n]*\n)*?```json\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(pairs) == 4
    environment = os.environ | {"URL": log.server.url, "TOKEN": "any"}
    log.publish("warm", 1, 1)
    for command, expected in pairs:
        log.settle()  # wait until earlier messages are in the log
        run = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=PATIENCE)
        assert run.returncode == 0, run.stderr
        assert without_varying_values(json.loads(run.stdout)) == without_varying_values(json.loads(expected))


def test_table_of_errors_is_complete() -> None:
    [table] = re.findall(r"^\| status \| code \|\n.*?\n\n", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    rows = {
        int(status): set(re.findall(r"`([a-z_]+)`", text)) for status, text in re.findall(r"\| (\d+) \| (.*)", table)
    }
    expected = {status: {code for code in STATUSES if STATUSES[code] == status} for status in STATUSES.values()}
    assert rows == expected | {status: {"invalid_request"} for status in BODY_STATUSES | ROUTING_STATUSES}


# -- the OpenAPI document ----------------------------------------------------------------------------------------------

#: The responses of streams never end; Schemathesis would wait for each of them.
NO_STREAMS = ("--exclude-path-regex", "/stream$")
#: Seconds for a run of Schemathesis on the slowest machine: some hundred requests, one after the other.
SECONDS = 900


@pytest.mark.timeout(SECONDS + 100)
def test_server_conforms_to_the_openapi_document(log: Log, tmp_path: Path) -> None:
    """Schemathesis sends some hundred valid and invalid requests and checks the responses against the document."""
    command = [
        str(Path(sys.executable).parent / "st"), "run", f"{log.server.url}/api/openapi.json",
        "--phases", "coverage,fuzzing", "--max-examples", "5", "--seed", "1", "--generation-database", "none",
        "--no-color", *NO_STREAMS,
        # A schema cannot express that a name is limited to 63 bytes, not characters, or that since requires epoch.
        "--exclude-checks", "positive_data_acceptance",
    ]  # fmt: skip
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Tested: 4" in run.stdout
    assert "Traceback" not in log.server.log, log.server.log
    # Some of the requests were valid.
    assert log.sql("SELECT count(*) > 0 FROM socketio_pg.log") == [(True,)]


@pytest.fixture(scope="module")
def secured(newest_pg: Cluster) -> Iterator[ServerProcess]:
    # With the schema: without its key, each request for a ticket waits for two seconds.
    log = Log(newest_pg, "http_document_tokens", JWT_SECRET=SECRET, MAX_EVENTS_PER_SECOND="0", AUTO_INIT="1")
    with contextlib.closing(log.server):
        yield log.server


def test_openapi_document_requires_tokens(secured: ServerProcess) -> None:
    """So does each operation, those with streams included: without a token, and with that of another."""
    document = json.loads(secured.get("/api/openapi.json")[1])
    assert document["security"] == [{"token": []}]
    operations = [
        (method, path.replace("{channel}", "foo"), operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if operation.get("security") != []
    ]
    assert len(operations) == 6
    for method, path, operation in operations:
        request = {"json": {"channel": "foo", "payload": 1}} if method == "post" else {"params": {"channel": "foo"}}
        for headers in ({}, {"Authorization": f"Bearer {mint(secret='x' * 64)}"}):
            answer = requests.request(method, secured.url + path, headers=headers, timeout=PATIENCE, **request)
            assert refusal(answer) == (401, "unauthorized"), path
            assert "401" in operation["responses"], path
            assert answer.headers["WWW-Authenticate"] == "Bearer", path
        token = {"Authorization": f"Bearer {mint()}"}
        with requests.request(
            method, secured.url + path, headers=token, timeout=PATIENCE, stream=True, **request
        ) as answer:
            assert str(answer.status_code) in operation["responses"].keys() - {"401"}, path


@pytest.mark.nightly
@pytest.mark.timeout(SECONDS + 100)
def test_tokens_are_required_as_the_openapi_document_says(secured: ServerProcess, tmp_path: Path) -> None:
    """Schemathesis repeats its requests without a token and with another one."""
    command = [
        str(Path(sys.executable).parent / "st"), "run", f"{secured.url}/api/openapi.json",
        "--header", f"Authorization: Bearer {mint()}", "--phases", "coverage", "--generation-database", "none",
        "--no-color", *NO_STREAMS, "--checks", "ignored_auth,status_code_conformance,response_headers_conformance",
    ]  # fmt: skip
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    assert run.returncode == 0, run.stdout + run.stderr


# -- docs/asyncapi.yaml ------------------------------------------------------------------------------------------------


def call(client: SocketClient, event: str, request: Any) -> dict[str, Any]:
    """Send a request and return its acknowledgement, checked against the document."""
    answer: dict[str, Any] = client.call(event, request)
    asyncapi.check(f"{event}_acknowledgement", answer)
    return answer


def test_server_events_conform_to_the_asyncapi_document(newest_pg: Cluster, channel: str) -> None:
    log = Log(
        newest_pg, "asyncapi", AUTO_INIT="1", JWT_SECRET=SECRET, AUTHORIZATION="claims", JWT_LEEWAY="300",
    )  # fmt: skip
    with contextlib.closing(log.server):
        all_claims: dict[str, Any] = {"subscribe": [f"{channel}*"], "publish": [f"{channel}*"]}
        api = HttpApi(log.server, mint(**all_claims))
        while "epoch" not in (start := api.page(channel)):
            pass
        token = mint(sub="alice", exp=int(time.time()) + 29, **all_claims)
        with SocketClient(log.server.url, auth={"token": token}) as client:
            received: dict[str, list[Any]] = {}

            def take(event: str) -> Any:
                value = client.next(event)
                asyncapi.check(event, value)
                received.setdefault(event, []).append(value)
                return value

            take("server_hello")
            take("token_expiring")
            assert call(client, "authenticate", {"token": mint(sub="alice", **all_claims)})["ok"] is True
            take("authenticated")
            subscription = {"channel": channel, "filter": {"n": {"gte": 0}}}
            assert call(client, "subscribe", subscription)["ok"] is True
            take("subscribed")
            for durable in (False, True):
                assert call(client, "publish", {"channel": channel, "payload": {"n": 1}, "durable": durable})["ok"]
                take("published")
            live = [take("event") for _ in range(2)]
            assert sorted("position" in message for message in live) == [False, True]
            since = {"epoch": start["epoch"], "position": start["position"]}
            assert call(client, "subscribe", {"channel": channel, "since": since})["recovered"] is True
            take("subscribed")
            assert take("event")["replayed"] is True
            take("live")
            together = {"channel": channel, "batch": True, "history": 2}
            log.sql(f"SELECT socketio_pg.publish('{channel}', '{{\"n\": 2}}') FROM generate_series(1, 2)")
            assert [take("event")["payload"] for _ in range(2)] == [{"n": 2}] * 2
            assert call(client, "subscribe", together)["ok"] is True
            take("subscribed")
            assert [message["payload"] for message in take("events")] == [{"n": 2}] * 2
            take("live")
            unknown = {"epoch": "another", "position": 0}
            assert call(client, "subscribe", {"channel": channel, "since": unknown})["recovered"] is False
            take("subscribed")
            for event in ("subscribe", "publish", "unsubscribe", "authenticate"):
                assert call(client, event, {"channel": "*", "payload": 1, "token": "x"})["ok"] is False
            client.io.emit("subscribe", {"channel": "elsewhere"})
            assert take("error")["channel"] == "elsewhere"
            log.sql("SELECT socketio_pg.send_to_user('alice', '[1.50]')")
            assert take("direct") == {"payload": [1.5]}
            newest_pg.terminate_backends()
            take("gap")
            assert call(client, "authenticate", {"token": mint(sub="alice", subscribe=[])})["ok"] is True
            assert take("unsubscribed")["reason"] == "forbidden"
            take("authenticated")
            assert call(client, "unsubscribe", {"channel": channel})["ok"] is True
            take("unsubscribed")
            # Every event of the document was received, except for some that others check: test_health.py one in an
            # outage, test_live_tables.py that of live tables, and test_presence.py those about members.
            elsewhere = ["health", "snapshot", "presence", "presence_state", "presence_ended"]
            assert sorted([*received, *elsewhere]) == sorted(asyncapi.message_names("send"))
        # The connection that reads the log was lost as well.
        until(lambda: api.messages(channel, **after(start)).status_code == 200, "the log can be read")
