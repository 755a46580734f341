"""The command line with real servers: --url, tokens, status, doctor, bench."""

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import COMMAND, Running, environment, run
from tests.support.log import Log
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.server import ROOT, ServerProcess, free_port

SECRET = "a secret of this test: 0123456789abcdef"


def test_publish_and_listen_work_through_a_server(log: Log, channel: str) -> None:
    with Running("listen", channel, "--json", "--count", "2", "--url", log.server.url) as listening:
        listening.line("err", "listening to")
        done = run("publish", channel, '{"n": 12345678901234567890123}', "--no-durable", "--url", log.server.url)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"published to {channel}\n", "")
        assert json.loads(listening.line()) == {"channel": channel, "payload": {"n": 12345678901234567890123}}
        done = run("publish", channel, "2", "--id", "two", "--url", log.server.url)
        line = json.loads(listening.line())
        assert done.stdout == f"published to {channel} at position {line['position']}\n"
        done = run("publish", channel, "2", "--id", "two", url=log.url)
        assert done.stdout == f"published before to {channel} at position {line['position']}\n"
        run("publish", channel, "3", "--id", "notified", "--no-durable", url=log.url)
        done = run("publish", channel, "3", "--id", "notified", url=log.url)
        assert done.stdout == f"published before to {channel}\n"
        assert "went with NOTIFY" in done.stderr
        assert (line["payload"], set(line)) == (2, {"channel", "payload", "position", "published_at", "epoch"})
        assert listening.wait() == 0


def test_listen_through_a_server_keeps_all_digits(log: Log, channel: str) -> None:
    numbers = ["1" * 20, "2" * 400, "3" * 5_000, "4.50", "5" * 30 + ".125"]
    log.sql("SELECT socketio_pg.publish(%s, %s::jsonb)", channel, f"[{', '.join(numbers)}]")
    log.settle()
    done = run("listen", channel, "--history", "1", "--count", "1", "--json", "--url", log.server.url)
    assert done.returncode == 0, done.stderr
    assert f'"payload":[{",".join(numbers)}]' in done.stdout


def test_durable_publish_prints_the_position(log: Log, channel: str) -> None:
    done = run("publish", channel, "1", "--durable", url=log.url)
    assert (done.returncode, done.stderr) == (0, "")
    [(first, epoch)] = log.sql(
        "SELECT position, epoch::text FROM socketio_pg.log, socketio_pg.head ORDER BY 1 DESC LIMIT 1"
    )
    assert done.stdout == f"published to {channel} at position {first}\n"
    log.publish(channel, 1, 3)
    second = json.loads(run("publish", channel, '"mine"', "--json", url=log.url).stdout)
    [(position,)] = log.sql("SELECT position FROM socketio_pg.log WHERE payload = to_jsonb('mine'::text)")
    assert second == {"channel": channel, "epoch": epoch, "position": position}
    assert json.loads(run("publish", channel, "1", "--no-durable", "--json", url=log.url).stdout) == {
        "channel": channel
    }


def test_listen_replays_from_a_position_through_a_server(log: Log, channel: str) -> None:
    log.publish(channel, 1, 3)
    log.settle()
    [(position,)] = log.sql("SELECT min(position) FROM socketio_pg.log WHERE channel = %s", channel)
    [(epoch,)] = log.sql("SELECT epoch::text FROM socketio_pg.head")
    for options in (["--since", str(position)], ["--since", f"{epoch}:{position}"], ["--history", "2"]):
        done = run("listen", channel, *options, "--count", "2", "--json", "--url", log.server.url)
        assert done.returncode == 0, done.stderr
        assert [json.loads(line)["payload"][0] for line in done.stdout.splitlines()] == [2, 3]
    done = run("listen", channel, "--since", "earliest", "--url", log.server.url)
    assert done.returncode == 2
    assert "--history" in done.stderr


def test_listen_receives_live_log_messages_from_the_database(log: Log, channel: str) -> None:
    with Running("listen", channel, "--since", "start", "--json", "--count", "2", url=log.url) as listening:
        listening.line("err", "listening to")
        log.publish(channel, 1, 2)
        assert [json.loads(listening.line())["payload"][0] for _ in range(2)] == [1, 2]
        assert listening.wait() == 0


def test_ctrl_c_ends_listen_through_a_server(log: Log, channel: str) -> None:
    with Running("listen", channel, "--url", log.server.url) as listening:
        listening.line("err", "listening to")
        assert listening.interrupt() == 130
        assert listening.rest() == []


@pytest.mark.parametrize(
    "through_server", [pytest.param(True, id="server"), pytest.param(False, id="database", marks=pytest.mark.nightly)]
)
def test_ctrl_c_ends_listen_while_its_output_is_not_read(log: Log, channel: str, through_server: bool) -> None:
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [*COMMAND, "listen", channel, *(["--url", log.server.url] if through_server else [])],
        cwd=ROOT / "tests", env=environment(log.url, {}), stdout=writing, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writing)
    assert process.stderr is not None
    try:
        assert "listening to" in process.stderr.readline()
        log.publish(channel, 1, 2000, pad=3000)
        until(lambda: bytes_in_pipe(reading) >= 40_000, "a full pipe")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE)[1] == ""
        assert process.returncode == 130
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
        os.close(reading)


def bytes_in_pipe(descriptor: int) -> int:
    """Return the number of unread bytes in a pipe."""
    return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_listen_reports_a_gap_after_a_server_restart(newest_pg: Cluster, channel: str) -> None:
    server = ServerProcess(newest_pg.url(), DRAIN_SECONDS="0")
    try:
        with Running("listen", channel, "--json", "--url", server.url) as listening:
            listening.line("err", "listening to")
            server.restart()
            assert channel in listening.line("err", "gap in")
            newest_pg.notify(channel, "1")
            assert json.loads(listening.line())["payload"] == 1
    finally:
        server.close()


@pytest.mark.parametrize("command", [["publish", "a", "1"], ["listen", "a"], ["bench"]], ids=" ".join)
def test_unreachable_server_exits_with_3(command: list[str]) -> None:
    done = run(*command, "--url", f"http://127.0.0.1:{free_port()}")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("Error: no connection to")
    assert len(done.stderr.splitlines()) == 1


def test_commands_require_a_token_and_respect_its_claims(newest_pg: Cluster, channel: str) -> None:
    server = ServerProcess(newest_pg.url(), JWT_SECRET=SECRET, AUTHORIZATION="claims", DRAIN_SECONDS="0")
    try:
        done = run("publish", channel, "1", "--url", server.url)
        assert done.returncode == 1
        assert "token" in done.stderr
        token = run("token", "--subscribe", channel, "--publish", channel, JWT_SECRET=SECRET).stdout.strip()
        assert run("publish", channel, "1", "--url", server.url, "--token", token).returncode == 0
        assert run("publish", channel, "1", "--url", server.url, SOCKETIO_PG_TOKEN=token).returncode == 0
        for command in (["publish", "other", "1"], ["listen", "other"]):
            done = run(*command, "--url", server.url, SOCKETIO_PG_TOKEN=token)
            assert (done.returncode, done.stdout) == (1, "")
            assert "the token has no permission to" in done.stderr
    finally:
        server.close()


def test_status_and_doctor_report_a_running_server(log: Log) -> None:
    # The server renews its row every 10 s after it has become the relay.
    until(lambda: log.sql("SELECT 1 FROM socketio_pg.nodes WHERE relay"), "a node leads")
    done = run("status", url=log.url)
    assert re.search(r"^relay +\S+:\d+ \(session \d+\)$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^\S+:\d+ +\S+ +leads ", done.stdout, re.MULTILINE), done.stdout
    found = doctor(log.url, PORT=str(log.server.port))
    assert found["port"] == f"a server is ready on 127.0.0.1:{log.server.port}"
    assert "leads" in found["relay"]
    assert found["nodes"].startswith("1 with version")


def doctor(url: str, code: int = 0, **settings: Any) -> dict[str, str]:
    """Return the finding of each check, by the name of the check."""
    done = run("doctor", "--json", url=url, **settings)
    assert done.returncode == code, done.stdout
    return {finding["check"]: finding["found"] for finding in map(json.loads, done.stdout.splitlines())}


def test_doctor_finds_a_server_that_is_not_ready(newest_pg: Cluster) -> None:
    server = ServerProcess("postgresql://127.0.0.1:9/nowhere", wait="http", DRAIN_SECONDS="0")
    try:
        server.wait_not_ready()
        assert "is not ready" in doctor(newest_pg.url(), 1, PORT=str(server.port))["server"]
    finally:
        server.close()


def test_doctor_finds_a_port_in_use(newest_pg: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = doctor(newest_pg.url(), 1, PORT=str(listener.getsockname()[1]))
    assert "is not a socketio_pg server" in found["port"]


def test_bench_reports_deliveries_and_latency(log: Log, tmp_path: Path) -> None:
    (tmp_path / "local.cfg").write_text("ALLOWED_ROLES = 'nobody'\nJWT_ALGORITHMS = 'RS256'\n")
    options = ["--subscribers", "3", "--messages", "5"]
    done = run("bench", *options, url=log.url, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not a benchmark" in done.stdout
    assert "delivered     15 of 15 (5 messages to 3 subscribers)" in done.stdout
    assert re.search(r"^latency +p50 \d+\.\d ms, p99 \d+\.\d ms$", done.stdout, re.MULTILINE)
    found = json.loads(run("bench", *options, "--json", "--url", log.server.url).stdout)
    assert (found["delivered"], found["expected"]) == (15, 15)
    assert 0 < found["p50"] <= found["p99"] <= found["seconds"]


@pytest.mark.nightly
def test_bench_stops_its_server_on_ctrl_c(log: Log) -> None:
    with Running("bench", "--subscribers", "3", "--messages", "100000", url=log.url) as running:
        running.line("err", "starting a server")
        processes: list[int] = []

        def started() -> bool:
            processes[:] = descendants_of(running.process.pid)
            return len(processes) >= 2

        until(started, "server and worker: with fewer processes the command is still starting the server")
        assert running.interrupt() == 130
        # Init reaps the worker, which is no child of the command's.
        until(lambda: not any(Path(f"/proc/{process}").exists() for process in processes), "its processes are gone")


def descendants_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    return children + [found for child in children for found in descendants_of(child)]
