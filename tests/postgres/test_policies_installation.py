"""Row-level-security policies: installation, grants, upgrades, and the privileges of client roles."""

import psycopg2
import pytest

from socketio_pg.access.policies import Policies
from socketio_pg.core.errors import DatabaseError, DatabaseUnavailableError, LogNotInstalledError
from socketio_pg.postgres import schema
from socketio_pg.postgres.database import Database
from tests.support.policies import PolicyDatabase, outcomes, question
from tests.support.postgres import Cluster

pytestmark = pytest.mark.majors


def test_missing_schema_is_an_error(postgres: Cluster, policies: Policies) -> None:
    with pytest.raises(LogNotInstalledError):
        Policies(Database(postgres.url()), 2.0).ask(question("subscribe", "kitchen"))
    with pytest.raises(LogNotInstalledError):
        Policies(Database(postgres.url()), 2.0).check(["authenticated"])


def test_server_role_without_privileges_is_an_error(database: PolicyDatabase, policies: Policies) -> None:
    database.sql("DROP ROLE IF EXISTS unprivileged; CREATE ROLE unprivileged LOGIN")
    other = Policies(Database(database.url.replace("postgres@", "unprivileged@")), 2.0)
    with pytest.raises(DatabaseError, match="permission denied") as raised:
        other.ask(question("subscribe", "kitchen"))
    assert not isinstance(raised.value, DatabaseUnavailableError)
    other.stop()


def test_check_logs_unusable_roles(policies: Policies, caplog: pytest.LogCaptureFixture) -> None:
    policies.check(["authenticated", "anon"])
    assert caplog.records == []
    policies.check(["authenticated", "not_granted", "nobody_has_this_name"])
    assert sorted(record.getMessage().partition(":")[0] for record in caplog.records) == [
        "clients of role 'nobody_has_this_name' will be refused",
        "clients of role 'not_granted' will be refused",
    ]


def test_client_role_without_grants_is_refused(
    policies: Policies, database: PolicyDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    database.sql("DROP ROLE IF EXISTS newcomer; CREATE ROLE newcomer; GRANT newcomer TO web")
    policies.check(["newcomer"])
    assert "socketio-pg init --client-role newcomer" in caplog.text
    assert policies.ask(question("subscribe", "lobby", role="newcomer")) is False
    database.sql("REVOKE newcomer FROM web; DROP ROLE newcomer")


def test_client_role_can_only_select_messages(database: PolicyDatabase) -> None:
    allowed = []
    for statement in [
        "SELECT * FROM socketio_pg.messages",
        "INSERT INTO socketio_pg.messages (channel) VALUES ('x')",
        "UPDATE socketio_pg.messages SET channel = 'x'",
        "DELETE FROM socketio_pg.messages",
        "SELECT socketio_pg.publish('x', '1')",
        "SELECT socketio_pg.probe_kinds(ARRAY['x'], ARRAY['event'])",
        "SELECT socketio_pg.decide(ARRAY['subscribe'], ARRAY['anon'], ARRAY['{}'], ARRAY['x'], 1)",
        "SELECT * FROM socketio_pg.log",
        "SELECT * FROM socketio_pg.outbox",
        "SELECT * FROM socketio_pg.head",
        "SELECT * FROM socketio_pg.node",
        "SELECT * FROM socketio_pg.channels",
        "CREATE TABLE socketio_pg.x ()",
        "CREATE POLICY x ON socketio_pg.messages USING (true)",
    ]:
        try:
            database.sql(f"SET ROLE anon; {statement}")
            allowed.append(statement)
        except psycopg2.errors.InsufficientPrivilege:
            pass
    assert allowed == ["SELECT * FROM socketio_pg.messages"]


def test_upgrade_from_version_1_keeps_policies(postgres: Cluster) -> None:
    database = PolicyDatabase(postgres, "policies_upgrade")
    before = database.sql("SELECT polname FROM pg_policy ORDER BY 1")
    assert len(before) == 4
    database.sql("SELECT socketio_pg.publish('kept', '1')")
    # Version 1 has nothing of sql/3_permissions.sql.
    database.sql("UPDATE socketio_pg.schema_version SET version = 1; DROP TABLE socketio_pg.messages CASCADE")
    database.sql("DROP FUNCTION socketio_pg.decide, socketio_pg.probe_kinds, socketio_pg.recheck")
    schema.install(Database(database.url), 1_000_000, again=False)
    assert database.sql("SELECT version FROM socketio_pg.schema_version") == [(schema.VERSION,)]
    assert database.sql("SELECT count(*) FROM socketio_pg.outbox") == [(1,)]
    database.sql("CREATE POLICY mine ON socketio_pg.messages USING (true)")
    database.sql(schema.statements(1_000_000))
    assert database.sql("SELECT polname FROM pg_policy") == [("mine",)]


def test_questions_use_one_transaction_id_per_batch(policies: Policies, database: PolicyDatabase) -> None:
    """Each transaction ID brings the next vacuum against wraparound nearer."""
    policies.ask(question("subscribe", "kitchen"))
    [(before,)] = database.sql("SELECT pg_current_xact_id()::text::bigint")
    outcomes(policies, *(question("subscribe", "kitchen", str(number)) for number in range(500)))
    [(after,)] = database.sql("SELECT pg_current_xact_id()::text::bigint")
    assert after - before < 50
