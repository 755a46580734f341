"""Live tables with row-level security: each client gets what a SELECT as its role shows, and nothing else."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.clients import code
from tests.support.live_tables import TableClient
from tests.support.patience import until
from tests.support.policies import RLS, PolicyDatabase
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess
from tests.support.tokens import mint

TABLE = """
CREATE TABLE notes (id int PRIMARY KEY, owner text NOT NULL, text text, secret text);
ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON notes FOR SELECT TO authenticated USING (
    owner = auth.uid() OR EXISTS (SELECT FROM members WHERE room = owner AND user_id = auth.uid()));
GRANT SELECT (id, owner, text) ON notes TO authenticated;
GRANT SELECT ON notes TO service_role;
CREATE TABLE closed (id int PRIMARY KEY);
SELECT socketio_pg.watch('notes', bulk_limit => 20), socketio_pg.watch('closed')
"""


@pytest.fixture(scope="module")
def database(newest_pg: Cluster) -> PolicyDatabase:
    made = PolicyDatabase(newest_pg, "live_tables_rls")
    made.sql(TABLE)
    return made


@pytest.fixture(scope="module")
def server(database: PolicyDatabase) -> Iterator[ServerProcess]:
    settings = RLS | {
        "ALLOWED_ROLES": "authenticated,service_role",
        "LIVE_TABLES": "public.*",
        "PERMISSION_RECHECK_SECONDS": "0",
        "AUTH": "optional",
    }
    with contextlib.closing(ServerProcess(database.server_url, **settings)) as made:
        yield made


@pytest.fixture(autouse=True)
def _empty(database: PolicyDatabase) -> None:
    database.sql("TRUNCATE notes; DELETE FROM members")


def connect(server: ServerProcess, sub: str, role: str = "authenticated", **options: Any) -> TableClient:
    return TableClient(server.url, auth={"token": mint(sub=sub, role=role)}, **options)


def note(id: int, owner: str, text: str | None = None) -> dict[str, Any]:
    return {"id": id, "owner": owner, "text": text}


def test_each_client_gets_its_rows(server: ServerProcess, database: PolicyDatabase) -> None:
    database.sql("INSERT INTO notes VALUES (1, 'alice', 'a', 's'), (2, 'bob', 'b', 's')")
    with (
        connect(server, "alice", strict=True) as alice,
        connect(server, "bob", strict=True) as bob,
        connect(server, "boss", "service_role", strict=True) as boss,
        TableClient(server.url) as anonymous,
    ):
        assert code(anonymous.table("public.notes")) == "forbidden"
        assert code(alice.table("public.closed")) == "forbidden"
        assert alice.table("public.notes")["rows"] == 1
        assert bob.table("public.notes", where={"text": {"ne": "hidden"}})["columns"] == ["id", "owner", "text"]
        assert boss.table("public.notes")["rows"] == 2
        for client in (alice, bob, boss):
            client.next("live")
        database.sql(
            "INSERT INTO notes VALUES (3, 'alice', 'c', 's'), (4, 'carol', 'd', 's');"
            "UPDATE notes SET text = 'e' WHERE id = 1; UPDATE notes SET text = 'hidden' WHERE id = 2"
        )
        database.sql("UPDATE notes SET owner = 'bob', text = 'moved' WHERE id = 3")
        database.sql("DELETE FROM notes WHERE id = 4; UPDATE notes SET id = 11 WHERE id = 1")
        alice.wait_rows([note(11, "alice", "e")])
        bob.wait_rows([note(3, "bob", "moved")])
        boss.wait_rows([{**note(11, "alice", "e"), "secret": "s"}, {**note(2, "bob", "hidden"), "secret": "s"},
                        {**note(3, "bob", "moved"), "secret": "s"}])  # fmt: skip
        assert "carol" not in repr(alice.log + bob.log)
        assert not any(body["payload"].get("pk") == {"id": 4} for name, body in alice.log + bob.log if name == "event")
        assert "'s'" not in repr(alice.log + bob.log)

        # What policies read has changed: the rows follow again.
        database.sql("INSERT INTO members VALUES ('alice', 'bob'); SELECT socketio_pg.recheck('table:public.notes')")
        alice.wait_rows([note(11, "alice", "e"), note(2, "bob", "hidden"), note(3, "bob", "moved")])
        # One statement with many rows; and a removed privilege.
        database.sql("INSERT INTO notes SELECT n, 'bob' FROM generate_series(100, 130) AS n")
        until(lambda: len(bob.rows) == 32 and len(alice.rows) == 34 and len(boss.rows) == 34, "many rows")
        database.sql("REVOKE SELECT (text) ON notes FROM authenticated; SELECT socketio_pg.recheck()")
        try:
            until(lambda: alice.rows.get('{"id": 2}') == {"id": 2, "owner": "bob"}, "the column is gone")
            assert bob.next("unsubscribed")["reason"] == "invalid_request", "where names a column that it cannot see"
        finally:
            database.sql("GRANT SELECT (text) ON notes TO authenticated")
        database.sql("REVOKE SELECT ON notes FROM authenticated, service_role; SELECT socketio_pg.recheck()")
        try:
            assert alice.next("unsubscribed")["reason"] == "forbidden"
            boss.next("unsubscribed")
        finally:
            database.sql(
                "GRANT SELECT (id, owner, text) ON notes TO authenticated; GRANT SELECT ON notes TO service_role"
            )


def test_new_claims(server: ServerProcess, database: PolicyDatabase) -> None:
    database.sql("INSERT INTO notes VALUES (1, 'alice'), (2, 'bob')")
    with connect(server, "alice") as client:
        client.table("public.notes")
        client.wait_rows([note(1, "alice")])
        assert client.call("authenticate", {"token": mint(sub="alice", role="authenticated", iat=5)})["ok"]
        assert client.call("authenticate", {"token": mint(sub="bob", role="authenticated")})["ok"]
        client.wait_rows([note(2, "bob")])
        assert client.snapshots == 2
        database.sql("UPDATE notes SET text = 'x'")
        client.wait_rows([note(2, "bob", "x")])
        assert client.call("authenticate", {"token": mint(sub="bob", role="nobody")})["ok"]
        assert client.next("unsubscribed")["reason"] == "forbidden"
