"""The commands publish, listen and status on a real database, run as a shell runs them: exit codes, stdout, stderr."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios
import uuid
from typing import Any

import pytest

from socketio_pg.postgres import schema
from tests.support.cli import COMMAND, Base, Running, environment, run
from tests.support.nightly import sampled
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster
from tests.support.server import ROOT


def test_init(newest_pg: Cluster) -> None:
    base = Base(newest_pg, log=False)
    done = run("init", url=base.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Installed: ")
    assert base.sql("SELECT version FROM socketio_pg.schema_version") == [(schema.VERSION,)]


# -- publish -----------------------------------------------------------------------------------------------------------


def test_listen_prints_published_messages(plain: Base, channel: str) -> None:
    with Running("listen", channel, "--json", "--count", "2", url=plain.url) as listening:
        listening.line("err", "listening to")
        done = run("publish", channel, '{"b": 1.10, "a": "é"}', url=plain.url)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"published to {channel}\n", "")
        done = run("publish", channel, "-", "--quiet", url=plain.url, stdin='\n[12345678901234567890123,\n "x"]\n')
        assert (done.returncode, done.stdout) == (0, "")
        assert listening.line() == f'{{"channel":"{channel}","payload":{{"b": 1.10, "a": "é"}}}}'
        assert "12345678901234567890123" in listening.line() + listening.line()
        assert listening.wait() == 0


def test_characters_that_the_terminal_lacks_are_escaped(plain: Base, channel: str) -> None:
    done = subprocess.run(
        [*COMMAND, "publish", f"{channel}→é", "1"], cwd=ROOT / "tests", check=False, capture_output=True,
        env=environment(plain.url, {"PYTHONIOENCODING": "cp1252"}),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode("cp1252").strip() == f"published to {channel}\\u2192é"


def test_payload_too_large_for_notify_needs_the_log(base: Base, plain: Base) -> None:
    large = json.dumps("x" * 9000)
    for done in (
        run("publish", "a", "-", url=plain.url, stdin=large),
        run("publish", "a", "-", "--no-durable", url=base.url, stdin=large),
    ):
        assert done.returncode == 2
        assert "--durable" in done.stderr
    assert run("publish", "a", "-", url=base.url, stdin=large, DURABLE_CHANNELS="b").returncode == 0
    assert base.sql("SELECT channel, size FROM socketio_pg.outbox") == [("a", 9002)]


def test_payload_too_large_for_the_log_is_refused(base: Base) -> None:
    done = run("publish", "a", "-", "--durable", url=base.url, stdin=json.dumps("x" * 1_100_000))
    assert done.returncode == 2
    assert "1100002 bytes" in done.stderr


def test_durable_publish_without_a_server_says_when_the_position_follows(base: Base) -> None:
    done = run("publish", "a", "1", "--durable", url=base.url)
    assert (done.returncode, done.stdout) == (0, "published to a\n")
    assert done.stderr == "No server is running: the message gets its position in the log when one starts.\n"
    done = run("publish", "a", "1", "--durable", "--json", url=base.url)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"channel": "a", "epoch": None, "position": None})
    assert run("publish", "a", "1", "--durable", "--quiet", url=base.url).stderr == ""


def test_publish_with_an_id_happens_once(base: Base) -> None:
    for quiet in ([], ["--quiet"]):
        done = run("publish", "a", "1", "--id", "x", *quiet, url=base.url)
        assert (done.returncode, "published" in done.stdout) == (0, not quiet)
    assert run("publish", "a", "1", "--id", "x", "--json", "--no-durable", url=base.url).stdout == (
        '{"channel":"a","duplicate":true}\n'
    )
    assert base.sql("SELECT channel FROM socketio_pg.outbox") == [("a",)]
    assert run("publish", "a", "1", "--id", "", url=base.url).returncode == 2


def test_publish_with_a_trace_and_without_a_client(base: Base) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for quiet in ([], ["--quiet"]):
        done = run("publish", "a", "1", "--exclude", "abc", "--traceparent", trace, *quiet, url=base.url)
        assert done.returncode == 0, done.stderr
    assert base.sql("SELECT meta FROM socketio_pg.outbox") == [({"exclude": "abc", "traceparent": trace},)] * 2
    for arguments in (["--exclude", "a b"], ["--traceparent", "x"], ["--exclude", "abc", "--no-durable"]):
        assert run("publish", "a", "1", *arguments, url=base.url).returncode == 2


def test_durable_publish_needs_no_right_to_read_the_log(base: Base, poor: str) -> None:
    assert run("init", "--publisher-role", "cli_poor", url=base.url).returncode == 0
    try:
        for options in (["--durable"], [], ["--id", "x"]):
            done = run("publish", "a", "1", *options, url=poor)
            assert (done.returncode, done.stdout, done.stderr) == (0, "published to a\n", "")
        assert len(base.sql("SELECT 1 FROM socketio_pg.outbox")) == 3
    finally:
        base.sql("DROP OWNED BY cli_poor")


def test_role_without_the_right_to_publish_notifies(base: Base, poor: str) -> None:
    assert run("publish", "a", "1", url=poor).returncode == 0
    assert run("publish", "a", "1", "--durable", url=poor).returncode == 1
    assert base.sql("SELECT 1 FROM socketio_pg.outbox") == []


def test_durable_channels_setting_chooses_the_log(base: Base) -> None:
    for channels in ("always:*", "other", ""):
        assert run("publish", "always:1", "7", url=base.url, DURABLE_CHANNELS=channels).returncode == 0
    assert base.sql("SELECT channel, payload FROM socketio_pg.outbox") == [("always:1", 7)]


def test_durable_without_a_log_fails(plain: Base) -> None:
    done = run("publish", "a", "1", "--durable", url=plain.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert "socketio-pg init" in done.stderr


@pytest.mark.parametrize(
    "command", [["publish", "a", "1"], ["listen", "a"], ["status"], ["init"], ["drop"], ["watches"], ["bench"]]
)
def test_unreachable_database_exits_with_3(command: list[str]) -> None:
    done = run(*command, url="postgresql://user:secret@127.0.0.1:9/nowhere")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("Error: ")
    assert "secret" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


# -- listen ------------------------------------------------------------------------------------------------------------


def payloads(*arguments: str, base: Base, code: int = 0) -> list[Any]:
    """Return the payloads that `listen --json` prints until it exits."""
    done = run("listen", *arguments, "--json", url=base.url)
    assert done.returncode == code, done.stderr
    return [json.loads(line)["payload"] for line in done.stdout.splitlines()]


def test_since_earliest_replays_the_whole_channel(logged: Base) -> None:
    assert payloads("a", "--since", "earliest", "--count", "4", base=logged) == [1, {"n": 2}, 1.1, "five"]


def test_listen_takes_several_channels(logged: Base) -> None:
    found = payloads("a", "b", "--since", "start", "--count", "5", base=logged)
    assert sorted(map(str, found)) == ["1", "1.1", "3", "five", "{'n': 2}"]


def test_history_prints_the_newest_messages(logged: Base) -> None:
    assert payloads("a", "--history", "2", "--count", "2", base=logged) == [1.1, "five"]


def test_filter_selects_messages(logged: Base) -> None:
    found = payloads("a", "--since", "start", "--filter", '{"n": {"gte": 2}}', "--count", "1", base=logged)
    assert found == [{"n": 2}]
    assert payloads("a", "--since", "start", "--filter", "{}", "--count", "4", base=logged)[-1] == "five"


@pytest.mark.parametrize("filter", ["{", "[]", '{"n": {"near": 2}}', "NaN"])
def test_invalid_filter_exits_with_2(logged: Base, filter: str) -> None:
    done = run("listen", "a", "--filter", filter, url=logged.url)
    assert (done.returncode, done.stdout) == (2, "")
    assert "'--filter'" in done.stderr


def test_since_a_position_prints_later_messages(logged: Base) -> None:
    assert payloads("a", "--since", "2", "--count", "2", base=logged) == [1.1, "five"]
    assert payloads("a", "--since", f"{logged.epoch}:4", "--count", "1", base=logged) == ["five"]


def test_json_line_has_epoch_and_position(logged: Base) -> None:
    done = run("listen", "a", "--since", "4", "--count", "1", "--json", url=logged.url)
    line = json.loads(done.stdout)
    assert line.pop("published_at").endswith("Z")
    assert line == {"channel": "a", "payload": "five", "position": 5, "epoch": logged.epoch, "replayed": True}


def test_timeout_before_count_exits_with_1(logged: Base) -> None:
    assert payloads("a", "--since", "4", "--count", "2", "--timeout", "3", base=logged, code=1) == ["five"]
    assert payloads("a", "--since", "4", "--timeout", "3", base=logged, code=0) == ["five"]


def test_position_of_another_epoch_is_a_gap(logged: Base) -> None:
    with Running("listen", "a", "--since", f"{uuid.uuid4()}:1", url=logged.url) as listening:
        listening.line("err", "gap in a: messages of the log may have been missed (epoch_changed)")
        listening.interrupt()
        assert listening.rest("out") == []


def test_trimmed_messages_are_a_gap_and_the_rest_is_printed(base: Base) -> None:
    base.log("3", "4", first=3)
    base.sql("UPDATE socketio_pg.head SET trimmed = 2")
    done = run("listen", "a", "--since", "0", "--count", "2", "--json", url=base.url)
    assert [json.loads(line)["payload"] for line in done.stdout.splitlines()] == [3, 4]
    assert "(trimmed)" in done.stderr


def test_position_without_a_log_is_a_gap(plain: Base) -> None:
    with Running("listen", "a", "--since", "start", url=plain.url) as listening:
        listening.line("err", "(not_installed)")
        listening.interrupt()
        assert listening.rest("out") == []


def test_default_output_is_readable(logged: Base) -> None:
    done = run("listen", "a", "--since", "1", "--count", "1", url=logged.url)
    assert re.fullmatch(r'\d\d:\d\d:\d\d  a  #2  {"n": 2}  \(replayed\)\n', done.stdout)


def test_ctrl_c_exits_with_130_silently(plain: Base, channel: str) -> None:
    with Running("listen", channel, url=plain.url) as listening:
        listening.line("err", "listening to")
        assert listening.interrupt() == 130
        assert listening.rest() == []


def test_lost_connection_is_reported_and_reopened(plain: Base, channel: str) -> None:
    with Running("listen", channel, "--count", "1", url=plain.url) as listening:
        listening.line("err", "listening to")
        plain.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE 'socketio_pg%' AND datname = current_database()"
        )
        listening.line("err", "not listening")
        assert channel in listening.line("err", "gap in")
        plain.sql("SELECT pg_notify(%s, '7')", channel)
        assert listening.line().endswith(f"{channel}  7")
        assert listening.wait() == 0


@pytest.mark.parametrize(
    "message",
    [pytest.param(True, id="at the next message"), pytest.param(False, id="while idle", marks=pytest.mark.nightly)],
)
def test_closed_pipe_ends_listen_silently(plain: Base, channel: str, message: bool) -> None:
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [*COMMAND, "listen", channel],
        cwd=ROOT / "tests", env=environment(plain.url, {}), stdout=writing, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writing)
    assert process.stderr is not None
    assert "listening to" in process.stderr.readline()
    os.close(reading)
    if message:
        plain.sql("SELECT pg_notify(%s, '7')", channel)
    assert process.communicate(timeout=PATIENCE)[1] == ""
    assert process.returncode == 0


# -- status ------------------------------------------------------------------------------------------------------------


def test_status_without_schema(plain: Base) -> None:
    done = run("status", url=plain.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "schema        not installed" in done.stdout
    found = json.loads(run("status", "--json", url=plain.url).stdout)
    assert found["schema"] == {"version": None, "expected": schema.VERSION}
    assert "relay" not in found


def test_status_shows_log_and_channels(logged: Base) -> None:
    done = run("status", url=logged.url)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert f"log           position 5, trimmed up to 0, epoch {logged.epoch}" in done.stdout
    assert "relay         none: no server is running" in done.stdout
    assert "outbox        empty" in done.stdout
    assert re.search(r"^CHANNEL +MESSAGES +LAST_POSITION +AGE$", done.stdout, re.MULTILINE)
    assert re.search(r"^a +4 +5 ", done.stdout, re.MULTILINE)
    found = json.loads(run("status", "--json", url=logged.url).stdout)
    assert found["log"] == {"epoch": logged.epoch, "position": 5, "trimmed": 0}
    assert [entry["channel"] for entry in found["channels"]] == ["a", "b"]
    assert found["relay"] == {
        "pid": None, "node": None, "renewed_seconds_ago": None, "expired": False,
        "outbox": {"rows": 0, "oldest_seconds": None},
    }  # fmt: skip


def test_status_shows_the_workers_of_nodes(base: Base) -> None:
    workers = [
        {"slot": 0, "pid": 12, "clients": 3, "listens": True, "problem": None},
        {"slot": 1, "pid": None, "clients": 0, "listens": False, "problem": "process: no answer"},
    ]
    base.sql(
        "INSERT INTO socketio_pg.node (id, name, version, relay, clients, workers) VALUES"
        " (gen_random_uuid(), 'one:1', '1', false, 3, %s), (gen_random_uuid(), 'two:2', '1', false, 5, NULL)",
        json.dumps(workers),
    )
    lines = run("status", url=base.url).stdout.splitlines()
    header = lines.index("NODE   WORKER  PID  CLIENTS  LISTENS  STATE")
    assert lines[header + 1 :] == [
        "one:1  0       12   3        yes      ready",
        "one:1  1            0                 process: no answer",
        "channels      the log is empty",
    ]
    nodes = json.loads(run("status", "--json", url=base.url).stdout)["nodes"]
    assert [(node["name"], node["workers"]) for node in nodes] == [("one:1", workers), ("two:2", None)]


def test_status_of_an_older_schema(base: Base) -> None:
    """Before version 5 nodes had no workers."""
    base.sql("DROP VIEW socketio_pg.nodes")
    base.sql("CREATE VIEW socketio_pg.nodes AS SELECT id, name, version, relay, position, clients, started_at, seen_at"
             " FROM socketio_pg.node")  # fmt: skip
    base.sql(
        "INSERT INTO socketio_pg.node (id, name, version, relay, clients)"
        " VALUES (gen_random_uuid(), 'one:1', '1', false, 3)"
    )
    done = run("status", url=base.url)
    assert re.search(r"^one:1 +1 +3 ", done.stdout, re.MULTILINE)
    assert "WORKER" not in done.stdout


def test_status_shows_waiting_messages(base: Base) -> None:
    run("publish", "a", "1", "--durable", url=base.url)
    assert "outbox        1 waiting, the oldest for " in run("status", url=base.url).stdout


def test_status_and_doctor_without_a_head_name_the_remedy(base: Base) -> None:
    base.sql("DELETE FROM socketio_pg.head")
    assert "the log's head is missing: run 'socketio-pg init'" in run("status", url=base.url).stdout
    assert "the log's head is missing: run 'socketio-pg init'" in run("doctor", url=base.url).stdout


def test_status_without_privileges_says_permission_denied(base: Base, poor: str) -> None:
    done = run("status", url=poor)
    assert done.returncode == 0
    assert "permission denied" in done.stdout


def on_terminal(url: str, *arguments: str, columns: int = 80) -> str:
    """Run a command on a terminal with colours. Return what it shows, without the colours and the lines of progress."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    settings = environment(url, {"TERM": "xterm", "NO_COLOR": ""})
    settings.pop("COLUMNS", None)
    process = subprocess.Popen([*COMMAND, *arguments], cwd=ROOT / "tests", env=settings, stdout=slave, stderr=slave)
    os.close(slave)
    written = b""
    try:
        while part := os.read(master, 65536):
            written += part
    except OSError:  # Linux: the process has closed its side
        pass
    finally:
        os.close(master)
    assert process.wait(PATIENCE) == 0, written
    assert b"\x1b[" in written
    return re.sub(r"\r\x1b\[K[^\r]*(?=\r\x1b\[K)|\x1b\[[0-9;]*[mK]", "", written.decode()).replace("\r", "")


@pytest.mark.parametrize(
    "arguments",
    sampled([["status"], ["watches"], ["doctor", "-v"], ["settings"]], lambda arguments: arguments == ["doctor", "-v"]),
    ids=" ".join,
)
def test_output_fits_the_terminal_without_broken_words(logged: Base, arguments: list[str]) -> None:
    long = "a_table_whose_name_is_as_long_as_names_can_be"
    logged.sql(f"CREATE TABLE IF NOT EXISTS {long} (id int PRIMARY KEY, state text)")
    logged.sql(f"SELECT socketio_pg.watch('{long}', \"when\" => 'new.state = ''paid'' AND new.id > 100')")
    shown = on_terminal(logged.url, *arguments)
    assert max(map(len, shown.splitlines())) <= 80, shown
    # Lists have spaces on a terminal, and titles are not in capitals.
    plain = run(*arguments, url=logged.url).stdout.replace(",", " ").lower().replace("_", " ")
    words = set(shown.replace(",", " ").lower().replace("_", " ").split())
    varying = {word for word in set(plain.split()) - words if re.search(r"\d", word)}
    assert set(plain.split()) - words - varying <= {"columns", "exclude", "relay"}, shown


# -- watch and unwatch -------------------------------------------------------------------------------------------------


def test_missing_table_exits_with_1(base: Base) -> None:
    for command in ("watch", "unwatch"):
        done = run(command, "nowhere.nothing", url=base.url)
        assert (done.returncode, done.stdout) == (1, "")
        assert "table nowhere.nothing does not exist" in done.stderr
