"""The doctor's checks without a database: settings, programs, this machine, and the evaluation of values."""

import contextlib
import json
import signal
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from socketio_pg.core import green as green_threads
from socketio_pg.core import loading
from socketio_pg.core.config import Settings
from socketio_pg.core.seal import REASONS
from socketio_pg.doctor import checks_database, checks_log, checks_settings
from socketio_pg.doctor.checks_names import names
from socketio_pg.doctor.doctor import examine
from socketio_pg.doctor.findings import Finding
from socketio_pg.postgres import schema
from socketio_pg.postgres.listeners import Listeners
from socketio_pg.version import __version__
from tests.support.cli import run
from tests.support.redis import Redis
from tests.support.tokens import KeyServer, SigningKey

pytestmark = pytest.mark.usefixtures("clean_settings")

SECRET = "a secret of this test: 0123456789abcdef"


def levels(findings: Iterable[Finding]) -> dict[str, str]:
    """Return {check: level}. Assert that every problem has a remedy, and that all texts have one line."""
    found: dict[str, str] = {}
    for finding in findings:
        assert (finding.remedy is None) == (finding.level == "ok"), finding
        assert "\n" not in f"{finding.found}{finding.remedy}"
        found[finding.check] = finding.level
    return found


# -- settings ----------------------------------------------------------------------------------------------------------


def test_valid_settings_are_ok(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    assert levels(checks_settings.configuration(Settings())) == {"settings": "ok"}
    assert capfd.readouterr().err == "", "only the doctor reports the server's warnings"


@pytest.mark.parametrize(
    "settings",
    [
        {"auth": "required"},
        {"jwt_secret": "short"},
        {"authorization": "claims"},
        {"authorization": "rls"},
        {"allowed_roles": ("web",)},
        {"jwt_secret": SECRET, "jwt_algorithms": ("RS256",)},
        {"listen": "leader"},
        {"listen": "leader", "message_queue": "postgres"},
    ],
    ids=str,
)
def test_invalid_settings_are_an_error(settings: dict[str, Any]) -> None:
    assert levels(checks_settings.configuration(Settings(**settings))) == {"settings": "error"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"AUTH": "warning", "HOSTS": "warning"}),
        ({"allowed_hosts": ("example.com",)}, {"AUTH": "warning"}),
        ({"allowed_hosts": ("*",)}, {"AUTH": "warning", "HOSTS": "warning"}),
        ({"debug": True}, {"AUTH": "warning", "DEBUG": "warning"}),
        ({"jwt_secret": SECRET}, {"AUTH": "ok", "AUTHORIZATION": "warning"}),
        ({"jwt_secret": SECRET, "authorization": "claims"}, {"AUTH": "ok"}),
        ({"jwt_secret": "x" * 40, "authorization": "claims"}, {"AUTH": "ok", "JWT_SECRET": "error"}),
        (
            {"jwks_url": "http://example.com/keys", "authorization": "claims"},
            {"AUTH": "ok", "JWKS_URL": "error", "JWT_AUDIENCE": "warning"},
        ),
        ({"jwks_url": "http://localhost/keys", "authorization": "claims", "jwt_audience": ("us",)}, {"AUTH": "ok"}),
        ({"cors_allowed_origins": ("*",)}, {"AUTH": "warning", "HOSTS": "warning", "ORIGINS": "warning"}),
        (
            {"cors_allowed_origins": ("http://example.com",)},
            {"AUTH": "warning", "HOSTS": "warning", "ORIGINS": "warning"},
        ),
        (
            {"cors_allowed_origins": ("https://example.com", "http://localhost:3000")},
            {"AUTH": "warning", "HOSTS": "warning"},
        ),
        ({"secret_key": "changeme"}, {"AUTH": "warning", "HOSTS": "warning", "SECRET_KEY": "warning"}),
        ({"metrics_token": "a" * 40}, {"AUTH": "warning", "HOSTS": "warning", "METRICS_TOKEN": "warning"}),
        ({"secret_key": SECRET, "metrics_token": SECRET}, {"AUTH": "warning", "HOSTS": "warning"}),
        ({"ping_interval": 60.0}, {"AUTH": "warning", "HOSTS": "warning", "PING_INTERVAL": "warning"}),
    ],
    ids=str,
)
def test_unsafe_settings_are_reported(settings: dict[str, Any], expected: dict[str, str]) -> None:
    assert levels(checks_settings.safety(Settings(**settings))) == expected


def test_findings_do_not_disclose_secrets() -> None:
    settings = Settings(jwt_secret="x" * 40, secret_key="changeme", metrics_token="y" * 40)
    told = " ".join(f"{finding.found} {finding.remedy}" for finding in checks_settings.safety(settings))
    assert not any(secret in told for secret in ("xxx", "changeme", "yyy"))


def test_key_set_is_fetched_and_checked(tmp_path: Path) -> None:
    server = KeyServer(SigningKey(kid="one"))
    try:
        assert levels(checks_settings.key_set(Settings(jwks_url=server.url))) == {"keys": "ok"}
        assert levels(checks_settings.key_set(Settings(jwks_url=server.url, auth="off"))) == {}
        for body in ('{"keys": []}', "<html>", "[]"):
            server.body = body
            assert levels(checks_settings.key_set(Settings(jwks_url=server.url))) == {"keys": "error"}
        server.status = 500
        assert levels(checks_settings.key_set(Settings(jwks_url=server.url))) == {"keys": "error"}
    finally:
        server.close()
    assert levels(checks_settings.key_set(Settings(jwks_url=str(tmp_path / "none.json")))) == {"keys": "error"}
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [SigningKey("ed").jwk]}))
    assert levels(checks_settings.key_set(Settings(jwks_url=str(tmp_path / "keys.json")))) == {"keys": "ok"}
    assert levels(checks_settings.key_set(Settings())) == {}


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_to_refuse_a_text_has_a_remedy(reason: str) -> None:
    [finding] = checks_log.judge_refused([("a:1", reason), ("b:2", reason)])
    assert finding.level == "warning"
    assert finding.found.startswith("a:1, b:2 gets ")
    assert finding.remedy


def test_names_of_settings_without_their_values() -> None:
    Path("local.cfg").write_text("SOCKETIO_PG_HOST = '::1'\nSOCKETIO_PG_TEST_PAGE = 'no'\nPORT = 3030\nAUTH = 'no'")
    found = loading.given({
        "HOST": "example.com", "TEST_PAGE": "0", "SOCKETIO_PG_PORT": "3030", "SOCKETIO_PG_AUTH": "off",
        "SOCKETIO_PG_JWT_SECRET": "s3cret-1", "JWT_SECRET": "s3cret-2", "SOCKETIO_PG_JWT_ISUER": "s3cret-3",
    })  # fmt: skip
    findings = [(finding.check, finding.level, finding.found, finding.remedy) for finding in names(found)]
    assert "s3cret" not in str(findings)
    assert [(check, level) for check, level, *_ in findings] == [
        ("names", "warning"), ("AUTH", "warning"), ("HOST", "warning"), ("JWT_SECRET", "warning"),
    ]  # fmt: skip
    assert findings[0][2:] == (
        "SOCKETIO_PG_JWT_ISUER in the environment is not a setting",
        "rename it SOCKETIO_PG_JWT_ISSUER",
    )
    assert findings[2][2] == ("HOST in the environment has no effect: SOCKETIO_PG_HOST in local.cfg has another value")


def test_message_queue() -> None:
    assert levels(checks_settings.message_queue(Settings())) == {}
    assert levels(checks_settings.message_queue(Settings(message_queue="postgres"))) == {}
    with contextlib.closing(Redis()) as redis:
        settings = Settings(message_queue=redis.url.replace("//", "//some:pass_word@"))
        assert levels(checks_settings.message_queue(Settings(message_queue=redis.url))) == {"MESSAGE_QUEUE": "ok"}
        [wrong_password] = checks_settings.message_queue(settings)
        assert wrong_password.level == "error"
        redis.signal(signal.SIGSTOP)
        [still] = checks_settings.message_queue(Settings(message_queue=redis.url))
        assert still.level == "error"
        redis.signal(signal.SIGCONT)
    [away] = checks_settings.message_queue(settings)
    assert away.level == "error"
    assert "pass_word" not in f"{away} {wrong_password}"


# -- programs and machine ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("green", "versions", "expected"),
    [
        (None, {"gunicorn": "25.3.0", "eventlet": "0.40.3"}, {"programs": "ok"}),
        (None, {"gunicorn": "26.0.0", "eventlet": "0.40.3"}, {"gunicorn": "error"}),
        ("eventlet", {"gunicorn": "missing", "eventlet": "0.40.3"}, {"gunicorn": "error"}),
        (None, {"gunicorn": "25.3.0", "eventlet": "missing"}, {"eventlet": "error"}),
        ("gevent", {"gunicorn": "25.3.0", "gevent": "26.9.0"}, {"programs": "ok"}),
        ("gevent", {"gunicorn": "27.0.1", "gevent": "26.9.0"}, {"programs": "ok"}),
        ("gevent", {"gunicorn": "23.0.0", "gevent": "26.9.0"}, {"gunicorn": "error"}),
        ("gevent", {"gunicorn": "27.0.1", "gevent": "missing"}, {"gevent": "error"}),
    ],
    ids=str,
)
def test_programs(green: str | None, versions: dict[str, str], expected: dict[str, str]) -> None:
    found = list(checks_settings.programs(Settings(green=green), {}, versions))
    assert levels(iter(found)) == expected
    assert (green or "eventlet") in f"{found[0].found} {found[0].remedy}"


def test_the_worker_class_chooses_the_programs() -> None:
    versions = {"gunicorn": "27.0.1", "gevent": "26.9.0"}
    found = checks_settings.programs(Settings(), {"GUNICORN_CMD_ARGS": "-k gevent"}, versions)
    assert [finding.found for finding in found] == ["the server runs on gevent 26.9.0, under gunicorn 27.0.1"]


def test_installed_programs_are_compatible() -> None:
    assert levels(checks_settings.programs(Settings(green=green_threads.LIBRARY), {})) == {"programs": "ok"}


@pytest.mark.parametrize(
    ("version", "chosen", "expected"),
    [
        ("3.3.9", None, {"psycopg 3": "ok"}),
        ("3.3.9", "wait_select", {"psycopg 3": "ok"}),
        ("3.3.9", "wait_c", {"psycopg 3": "error"}),
        ("missing", "wait_c", {}),
    ],
)
def test_psycopg3_waits_in_green_threads(version: str, chosen: str | None, expected: dict[str, str]) -> None:
    environment = {} if chosen is None else {"PSYCOPG_WAIT_FUNC": chosen}
    assert levels(checks_settings.drivers(environment, version)) == expected


@pytest.mark.parametrize(
    ("arguments", "green", "problems"),
    [
        ("", None, 0), ("-w 1 --worker-class eventlet", None, 0), ("--workers=1", None, 0),
        ("--log-level debug", None, 0), ("-w 4", None, 0), ("-w65", None, 1), ("--workers 65", None, 1),
        ("--workers=two", None, 0), ("-k gevent", None, 0), ("-kgevent", "gevent", 0), ("-k gevent", "eventlet", 1),
        ("-k eventlet", "gevent", 1), ("-k gevent_pywsgi", None, 1), ("-w 65 --worker-class=sync", "gevent", 2),
    ],
)  # fmt: skip
def test_workers(arguments: str, green: str | None, problems: int) -> None:
    found = list(checks_settings.workers(Settings(green=green), {"GUNICORN_CMD_ARGS": arguments}))
    assert len(found) == problems
    assert all(finding.level == "error" for finding in found)


def test_descriptors() -> None:
    assert levels(checks_settings.descriptors(Settings(max_connections=1))) == {"open files": "ok"}


@pytest.fixture
def taken() -> Iterator[int]:
    """A port with a program that does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_unavailable_port_is_an_error(taken: int) -> None:
    assert levels(checks_settings.port(Settings(port=taken, host="192.0.2.1"))) == {"port": "error"}
    assert levels(checks_settings.port(Settings(port=taken, host="no such host.invalid"))) == {"port": "error"}


def test_port_of_another_program_is_an_error(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks_settings, "SECONDS", 0.2)
    assert levels(checks_settings.port(Settings(port=taken))) == {"port": "error"}


# -- evaluation of values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "encoding", "standby", "expected"),
    [
        (180_004, "UTF8", False, {"version": "ok"}),
        (130_000, "UTF8", False, {"version": "ok"}),
        (120_022, "UTF8", False, {"version": "error"}),
        (190_000, "UTF8", False, {"version": "warning"}),
        (180_004, "LATIN1", False, {"version": "ok", "encoding": "warning"}),
        (180_004, "UTF8", True, {"version": "ok", "standby": "error"}),
    ],
)
def test_postgres_server(version: int, encoding: str, standby: bool, expected: dict[str, str]) -> None:
    assert levels(checks_database.judge_server("x", version, encoding, standby=standby)) == expected


@pytest.mark.parametrize(
    ("skew", "doubt", "level"),
    [(0.1, 0.1, "ok"), (-0.1, 0, "ok"), (5.5, 1, "ok"), (6, 0.1, "warning"), (-3600, 0.1, "warning")],
)
def test_clock_skew(skew: float, doubt: float, level: str) -> None:
    assert levels(checks_database.judge_clock(skew, doubt)) == {"clock": level}


@pytest.mark.parametrize(("usage", "level"), [(0, "ok"), (0.04, "ok"), (0.1, "warning"), (0.5, "error"), (1, "error")])
def test_notify_queue(usage: float, level: str) -> None:
    assert levels(checks_database.judge_queue(usage)) == {"NOTIFY queue": level}


@pytest.mark.parametrize(("used", "level"), [(5, "ok"), (90, "ok"), (91, "warning"), (100, "warning")])
def test_sessions(used: int, level: str) -> None:
    assert levels(checks_database.judge_sessions(used, 100)) == {"sessions": level}


@pytest.mark.parametrize(
    ("channels", "free", "level"), [(8_000, 10, "ok"), (50_000, 14, "warning"), (50_000, 15, "ok")]
)
def test_sessions_for_many_channels(channels: int, free: int, level: str) -> None:
    further = Listeners.connections_for(channels) - 1
    assert levels(checks_database.judge_sessions(100 - free, 100, further)) == {"sessions": level}


@pytest.mark.parametrize(
    ("version", "settings", "level"),
    [
        (schema.VERSION, {}, "ok"),
        (None, {}, "warning"),
        (None, {"auto_init": True}, "ok"),
        (None, {"durable_channels": ("a",)}, "error"),
        (None, {"authorization": "rls"}, "error"),
        (schema.VERSION - 1, {}, "error"),
        (schema.VERSION + 1, {}, "error"),
    ],
)
def test_schema_version(version: int | None, settings: dict[str, Any], level: str) -> None:
    assert levels(checks_log.judge_schema(version, Settings(**settings))) == {"schema": level}


@pytest.mark.parametrize(
    ("pid", "rows", "oldest", "level"),
    [
        (1, 0, None, "ok"), (1, 5, 0.1, "ok"), (1, 5, 11.0, "error"), (None, 0, None, "warning"),
        (None, 1, 0.1, "error"),
    ],
)  # fmt: skip
def test_relay_lag(pid: int | None, rows: int, oldest: float | None, level: str) -> None:
    assert levels(checks_log.judge_relay(pid, None, rows, oldest)) == {"relay": level}


def test_stuck_relay_is_an_error_however_old_its_messages_are() -> None:
    assert levels(checks_log.judge_relay(1, None, 1, 0.1, stuck=True)) == {"relay": "error"}


@pytest.mark.parametrize(
    ("max_prepared", "rings", "text"),
    [(0, True, "publishers notify"), (5, True, "cannot use PREPARE TRANSACTION"), (5, False, "every 20 ms")],
)
def test_doctor_tells_how_the_relay_finds_messages(max_prepared: int, rings: bool, text: str) -> None:
    assert text in checks_log.judge_doorbell(max_prepared, rings=rings).found


def test_node_versions() -> None:
    assert levels(checks_log.judge_nodes({})) == {}
    assert levels(checks_log.judge_nodes({"a": __version__, "b": __version__})) == {"nodes": "ok"}
    assert levels(checks_log.judge_nodes({"a": __version__, "b": "0.0.1"})) == {"nodes": "warning"}
    assert levels(checks_log.judge_nodes({"a": "0.0.1", "b": "0.0.1"})) == {"nodes": "warning"}


def test_checked_privileges_include_all_granted_ones() -> None:
    needed = checks_log.needed_privileges(Settings())
    assert ("SCHEMA", "socketio_pg", "USAGE") in needed
    assert ("FUNCTION", "socketio_pg.publish(text, jsonb)", "EXECUTE") in needed
    assert ("", "socketio_pg.log", "DELETE") in needed
    assert ("", "socketio_pg.nodes", "SELECT") in needed
    grants = schema.statements(1_000_000, server_role="doctor").count('TO "doctor"')
    assert len({object for _, object, _ in needed}) >= grants


# -- all checks --------------------------------------------------------------------------------------------------------


def test_missing_database_is_an_error_outside_development(clean_settings: Path) -> None:
    assert levels(examine(Settings()))["database"] == "error"
    assert "database" not in levels(examine(Settings(debug=True)))


def test_unreachable_database_is_reported_without_the_password() -> None:
    done = run("doctor", url="postgresql://user:password@127.0.0.1:9/nowhere")
    assert done.returncode == 1
    assert "error    database        host=127.0.0.1 port=9" in done.stdout
    assert "password" not in done.stdout + done.stderr
    assert done.stderr == ""


CONSUMER = {"name": "billing", "position": 7, "lag": 0, "age_seconds": None, "failures": 0, "error": None, "lost": None}


@pytest.mark.parametrize(
    ("change", "level", "found"),
    [
        ({}, "ok", "1 registered"),
        ({"lost": "epoch_changed"}, "error", "new epoch"),
        ({"lost": "trimmed"}, "error", "removed"),
        (
            {"failures": 3, "error": "LookupError: 5", "lag": 2},
            "warning",
            "3 times: LookupError: 5; 2 positions",
        ),
        ({"lag": 9, "age_seconds": 120.0}, "warning", "lags: 9 positions behind, its oldest message is 2 min old"),
    ],
)
def test_consumers_are_judged(change: dict[str, Any], level: str, found: str) -> None:
    [finding, *_] = checks_log.judge_consumers([CONSUMER | change], 200.0)
    assert (finding.level, found in finding.found) == (level, True), finding


def test_no_consumers_are_no_finding() -> None:
    assert list(checks_log.judge_consumers([], 200.0)) == []
