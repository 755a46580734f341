"""A database with roles and policies, as an application has it that people reach with PostgREST's tokens."""

import contextlib
from typing import Any

import psycopg2

from socketio_pg import schema
from tests.support.postgres import Cluster, in_thread

#: As in docs/security.md. The helper is Supabase's own.
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
CREATE POLICY "everybody's own channel" ON socketio_pg.messages FOR SELECT TO authenticated USING (
    channel = 'user:' || (SELECT auth.uid())
);
CREATE POLICY "the lobby" ON socketio_pg.messages FOR SELECT TO anon, authenticated USING (channel = 'lobby');
"""

#: Made once for a cluster: roles belong to all of its databases.
_ROLES = """
DO $$
BEGIN
    CREATE ROLE authenticated NOLOGIN;
    CREATE ROLE anon NOLOGIN;
    CREATE ROLE service_role NOLOGIN BYPASSRLS;
    CREATE ROLE not_granted NOLOGIN;
    CREATE ROLE web LOGIN NOINHERIT;
    GRANT authenticated, anon, service_role TO web;
EXCEPTION WHEN duplicate_object THEN NULL;
END $$
"""


class PolicyDatabase:
    """A database of its own with our schema, :data:`MODEL`, and a server's role that is not the owner."""

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
        """Run it as the owner, committed."""
        rows: list[tuple[Any, ...]] = in_thread(self._sql, statement, parameters)
        return rows

    def connect(self) -> Any:
        """A plain connection of the owner, which is in a transaction with its first statement."""
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
        """Take that away."""
        self.sql("DELETE FROM members WHERE user_id = %s AND room = ANY(%s)", user, list(rooms))
