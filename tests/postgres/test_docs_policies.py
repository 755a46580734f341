"""The SQL of docs/security.md and docs/recipes.md runs as it is written, and the policies decide as the pages say."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from socketio_pg.access.policies import Policies
from socketio_pg.access.questions import Action, Question
from socketio_pg.postgres import schema
from socketio_pg.postgres.database import Database
from tests.support.postgres import Cluster

ROOT = Path(__file__).resolve().parents[2]


def blocks() -> list[str]:
    """Return the SQL blocks of the pages."""
    text = "".join((ROOT / "docs" / name).read_text("utf-8") for name in ("security.md", "recipes.md"))
    return re.findall(r"```sql\n(.*?)```", text, re.DOTALL)


def block(word: str) -> str:
    [found] = [text for text in blocks() if word in text]
    return found


@pytest.fixture(scope="module")
def policies(newest_pg: Cluster) -> Iterator[Policies]:
    name = "docs_policies"
    newest_pg.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    newest_pg.sql(f"CREATE DATABASE {name}")
    database = Database(newest_pg.url(name))
    for role in ("socketio_web", "authenticated", "anon"):
        if not newest_pg.sql("SELECT 1 FROM pg_roles WHERE rolname = %s", role):
            [statement] = re.findall(rf"CREATE ROLE {role} [^;]*;", block("CREATE ROLE socketio_web"))
            newest_pg.sql(statement)
    newest_pg.sql("GRANT authenticated, anon TO socketio_web")
    schema.install(database, 1_000_000, "socketio_web", client_roles=("authenticated", "anon"))
    connection = database.connect("policies")
    with connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA auth; GRANT USAGE ON SCHEMA auth TO authenticated, anon")
        cursor.execute(block("CREATE FUNCTION auth.uid()"))
        cursor.execute("CREATE TABLE room_members (user_id text, room text, may_write boolean)")
        cursor.execute("INSERT INTO room_members VALUES ('alice', 'room:7', true), ('bob', 'room:7', false)")
        cursor.execute(block('CREATE POLICY "members read"'))
        # The block about changed permissions must run, too.
        cursor.execute(block("SELECT socketio_pg.recheck();"))
    connection.close()
    made = Policies(Database(newest_pg.url(name).replace("postgres@", "socketio_web@")), 2.0)
    yield made
    made.stop()


@pytest.mark.parametrize(
    ("sub", "role", "action", "channel", "expected"),
    [
        ("alice", "authenticated", "subscribe", "room:7", True),
        ("bob", "authenticated", "subscribe", "room:7", True),
        ("carol", "authenticated", "subscribe", "room:7", False),
        ("alice", "authenticated", "publish", "room:7", True),
        ("bob", "authenticated", "publish", "room:7", False),
        ("carol", "authenticated", "subscribe", "user:carol", True),
        ("carol", "authenticated", "subscribe", "user:alice", False),
        ("carol", "authenticated", "publish", "user:carol", False),
        ("nobody", "anon", "subscribe", "lobby", True),
        ("nobody", "anon", "subscribe", "room:7", False),
        ("nobody", "anon", "publish", "lobby", False),
    ],
)
def test_policies_decide_as_documented(
    policies: Policies, sub: str, role: str, action: Action, channel: str, expected: bool
) -> None:
    assert policies.ask(Question(action, role, json.dumps({"sub": sub, "role": role}), channel)) is expected
