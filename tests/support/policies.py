"""A database with roles and policies, as in an application with PostgREST tokens."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import psycopg2

from socketio_pg.access.policies import Policies
from socketio_pg.access.questions import Action, Question
from socketio_pg.core import green
from socketio_pg.postgres import schema
from tests.support.postgres import Cluster, in_thread
from tests.support.tokens import SECRET

#: Settings of a server that asks policies.
RLS = {"JWT_SECRET": SECRET, "AUTHORIZATION": "rls", "ALLOWED_ROLES": "authenticated", "DRAIN_SECONDS": "0.2"}

#: As in docs/recipes.md. auth.uid() is Supabase's helper.
MODEL = """
CREATE SCHEMA auth;
GRANT USAGE ON SCHEMA auth TO authenticated, anon;
CREATE FUNCTION auth.uid() RETURNS text LANGUAGE sql STABLE AS $$
    SELECT nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
$$;

CREATE TABLE members (user_id text NOT NULL, room text NOT NULL, writes boolean NOT NULL DEFAULT false,
    PRIMARY KEY (user_id, room));
GRANT SELECT ON members TO authenticated;

CREATE POLICY "members may read their rooms" ON socketio_pg.messages FOR SELECT TO authenticated USING (
    EXISTS (SELECT FROM members WHERE user_id = (SELECT auth.uid()) AND room = (SELECT socketio_pg.channel()))
);
CREATE POLICY "some may write" ON socketio_pg.messages FOR INSERT TO authenticated WITH CHECK (
    EXISTS (SELECT FROM members WHERE user_id = (SELECT auth.uid()) AND room = channel AND writes)
);
CREATE POLICY "own channel" ON socketio_pg.messages FOR SELECT TO authenticated USING (
    channel = 'user:' || (SELECT auth.uid())
);
CREATE POLICY "the lobby" ON socketio_pg.messages FOR SELECT TO anon, authenticated USING (channel = 'lobby');
"""

#: Roles are shared by all databases of a cluster, and other tests create some of them.
_ROLES = """
DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY '{authenticated,anon,service_role,not_granted,web}'::text[] LOOP
        CONTINUE WHEN to_regrole(role) IS NOT NULL;
        EXECUTE 'CREATE ROLE ' || role;
    END LOOP;
    ALTER ROLE service_role BYPASSRLS;
    ALTER ROLE web LOGIN NOINHERIT;
    GRANT authenticated, anon, service_role TO web;
END $$
"""


class PolicyDatabase:
    """A separate database with our schema and :data:`MODEL`, and a role for servers that is not the owner."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        cluster.sql(_ROLES)
        cluster.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        cluster.sql(f"CREATE DATABASE {name}")
        self.url = cluster.url(name)
        self.server_url = self.url.replace("postgres@", "web@")
        clients = ("authenticated", "anon", "service_role")
        self.sql(schema.statements(1_000_000, server_role="web", client_roles=clients))
        self.sql(MODEL)

    def sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement as the owner and commit it."""
        rows: list[tuple[Any, ...]] = in_thread(self._sql, statement, parameters)
        return rows

    def connect(self) -> Any:
        """Return a connection of the owner without autocommit."""
        return psycopg2.connect(self.url)

    def _sql(self, statement: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            connection.commit()
            return list(cursor.fetchall()) if cursor.description else []

    def join(self, user: str, *rooms: str, writes: bool = False) -> None:
        """Make ``user`` a member of ``rooms``."""
        for room in rooms:
            self.sql(
                "INSERT INTO members VALUES (%s, %s, %s)"
                " ON CONFLICT (user_id, room) DO UPDATE SET writes = excluded.writes",
                user, room, writes,
            )  # fmt: skip

    def part(self, user: str, *rooms: str) -> None:
        """Remove ``user`` from ``rooms``."""
        self.sql("DELETE FROM members WHERE user_id = %s AND room = ANY(%s)", user, list(rooms))


def question(action: Action, channel: str, sub: str = "alice", role: str = "authenticated", **claims: Any) -> Question:
    return Question(action, role, json.dumps({"sub": sub, "role": role} | claims), channel)


def nothing_is_left(database: PolicyDatabase) -> bool:
    return database.sql("SELECT count(*) FROM socketio_pg.messages") == [(0,)]


def outcomes(policies: Policies, *questions: Question) -> list[Any]:
    """Ask all questions concurrently. Return the answer or the error of each."""
    found: list[Any] = [None] * len(questions)

    def ask(index: int) -> None:
        try:
            found[index] = policies.ask(questions[index])
        except Exception as error:
            found[index] = error

    threads = [green.spawn(ask, index) for index in range(len(questions))]
    for thread in threads:
        thread.wait()
    return found


@contextlib.contextmanager
def locked(database: PolicyDatabase, statement: str) -> Iterator[None]:
    """Hold a lock in another transaction for the body."""
    with contextlib.closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        yield
