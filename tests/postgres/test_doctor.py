"""The doctor's findings on a real database. Checks that break the database are in tests/faults/test_doctor.py."""

import subprocess
import uuid
from typing import Any

import pytest

from socketio_pg.postgres import schema
from tests.support.cli import COMMAND, Base, doctor, environment, level, run
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster
from tests.support.server import ROOT


def test_healthy_database_is_ok(logged: Base) -> None:
    found = doctor(logged.url)
    for check in ("settings", "version", "clock", "LISTEN", "NOTIFY queue", "sessions", "schema", "privileges"):
        assert level(found, check) == "ok", found[check]
    assert level(found, "relay") == "warning", "no server runs"
    done = run("doctor", url=logged.url)
    assert "errors: 0," in done.stdout
    assert "LISTEN" not in done.stdout
    assert "LISTEN" in run("doctor", "-v", url=logged.url).stdout


def test_missing_schema_is_a_warning_or_an_error(plain: Base) -> None:
    assert level(doctor(plain.url), "schema") == "warning"
    found = doctor(plain.url, 1, AUTHORIZATION="rls", ALLOWED_ROLES="postgres", JWT_SECRET=uuid.uuid4().hex)
    assert "AUTHORIZATION=rls" in found["schema"]["found"]


@pytest.mark.parametrize("version", [schema.VERSION - 1, schema.VERSION + 1])
def test_other_schema_version_is_an_error(base: Base, version: int) -> None:
    base.sql("UPDATE socketio_pg.schema_version SET version = %s", version)
    assert level(doctor(base.url, 1), "schema") == "error"


def test_missing_privileges_are_an_error(base: Base, poor: str) -> None:
    found = doctor(poor, 1)
    assert level(found, "privileges") == "error"
    assert "schema" not in found
    base.sql("GRANT USAGE ON SCHEMA socketio_pg TO cli_poor")
    base.sql("GRANT SELECT ON socketio_pg.schema_version TO cli_poor")
    found = doctor(poor, 1)
    assert level(found, "privileges") == "error"
    assert "--server-role cli_poor" in found["privileges"]["remedy"]
    assert run("init", "--server-role", "cli_poor", url=base.url).returncode == 0
    assert level(doctor(poor), "privileges") == "ok"
    base.sql("DROP OWNED BY cli_poor")


def test_waiting_messages_without_a_relay_are_an_error(base: Base) -> None:
    run("publish", "a", "1", "--durable", "--quiet", url=base.url)
    assert level(doctor(base.url, 1), "relay") == "error"


def test_stuck_relay_is_an_error(base: Base) -> None:
    relaying = base.cluster.connect(base.name)
    try:
        with relaying.cursor() as cursor:
            cursor.execute(
                "UPDATE socketio_pg.head"
                " SET leader_name = 'web:1', session_pid = pg_backend_pid(), session_started = NULL"
            )
            cursor.execute("SELECT setval('socketio_pg.lease', (extract(epoch FROM now()) * 1000)::bigint)")
        found = doctor(base.url)
        assert level(found, "relay") == "ok"
        assert "web:1 leads" in found["relay"]["found"]
        run("publish", "a", "1", "--durable", "--quiet", url=base.url)
        base.sql("UPDATE socketio_pg.outbox SET published_at = now() - interval '1 minute'")
        found = doctor(base.url, 1)
        assert level(found, "relay") == "error"
        assert "is stuck: 1 waiting in the outbox, the oldest for 6" in found["relay"]["found"]
        base.sql("DELETE FROM socketio_pg.outbox")
        base.sql("SELECT setval('socketio_pg.lease', 1)")
        found = doctor(base.url, 1)
        assert level(found, "relay") == "error"
        assert f"web:1 (session {relaying.info.backend_pid}), has not renewed its lease" in found["relay"]["found"]
    finally:
        relaying.close()


def test_advisory_locks_mean_nothing(base: Base) -> None:
    """Earlier versions elected the relay with one, which any role can take."""
    other = base.cluster.connect(base.name)
    try:
        with other.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(1399803975, n) FROM generate_series(1, 3) AS n")
        assert "no server is running" in doctor(base.url)["relay"]["found"]
    finally:
        other.close()


def test_nodes_of_other_versions_are_a_warning(base: Base) -> None:
    base.sql(
        "INSERT INTO socketio_pg.node (id, name, version, relay, clients) VALUES"
        " (gen_random_uuid(), 'one:1', '0.0.1', false, 0), (gen_random_uuid(), 'two:1', '0.0.2', false, 0)"
    )
    found = doctor(base.url)
    assert level(found, "nodes") == "warning"
    assert "one:1 0.0.1, two:1 0.0.2" in found["nodes"]["found"]


def test_unusable_client_role_is_an_error(base: Base, poor: str) -> None:
    settings: dict[str, Any] = {"AUTHORIZATION": "rls", "ALLOWED_ROLES": "cli_poor", "JWT_SECRET": uuid.uuid4().hex}
    found = doctor(base.url, 1, **settings)
    assert level(found, "roles") == "error"
    assert "--client-role cli_poor" in found["roles"]["remedy"]
    assert run("init", "--client-role", "cli_poor", url=base.url).returncode == 0
    assert level(doctor(base.url, **settings), "roles") == "ok"
    base.sql("DROP OWNED BY cli_poor")


def test_other_encoding_is_a_warning(newest_pg: Cluster) -> None:
    newest_pg.sql("DROP DATABASE IF EXISTS cli_latin WITH (FORCE)")
    newest_pg.sql("CREATE DATABASE cli_latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    assert level(doctor(newest_pg.url("cli_latin")), "encoding") == "warning"


def test_listening_to_another_database_is_an_error(plain: Base, logged: Base) -> None:
    found = doctor(plain.url, 1, LISTEN_DATABASE_URL=logged.url)
    assert level(found, "LISTEN") == "error"
    assert "another database" in found["LISTEN"]["found"]
    found = doctor(plain.url, 1, LISTEN_DATABASE_URL="postgresql://127.0.0.1:9/nowhere")
    assert "LISTEN_DATABASE_URL is unreachable" in found["LISTEN"]["found"]


def test_low_descriptor_limit_is_a_warning(plain: Base) -> None:
    assert level(doctor(plain.url, MAX_CONNECTIONS="1000000"), "open files") in ("ok", "warning")
    done = subprocess.run(
        ["bash", "-c", 'ulimit -n 256; exec "$@"', "bash", *COMMAND, "doctor"],
        cwd=ROOT / "tests", env=environment(plain.url, {}), capture_output=True, text=True, timeout=PATIENCE,
        check=True,
    )  # fmt: skip
    assert "warning  open files      at most 256 descriptors" in done.stdout
