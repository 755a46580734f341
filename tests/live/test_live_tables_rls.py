"""Live tables with row-level security: each client gets what a SELECT as its role shows, and nothing else."""

import contextlib
import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.clients import code
from tests.support.live_tables import TableClient, key_of
from tests.support.live_writers import Writers
from tests.support.metrics import TOKEN, Moved
from tests.support.patience import PATIENCE, until
from tests.support.policies import RLS, PolicyDatabase
from tests.support.postgres import Cluster
from tests.support.recovery import RecoveringClient
from tests.support.server import PATIENT, ServerProcess
from tests.support.swarm import Swarm
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
SETTINGS = (
    RLS
    | PATIENT
    | {  # a client that reads slowly does not answer pings
        "ALLOWED_ROLES": "authenticated,service_role",
        "LIVE_TABLES": "public.*",
        "PERMISSION_RECHECK_SECONDS": "0",
        "PERMISSION_TIMEOUT": "60",  # on a busy machine PostgreSQL may take longer than the usual two seconds
        "AUTH": "optional",
        "METRICS_TOKEN": TOKEN,
    }
)
#: Those who wait for the table.
WAITING = "SELECT count(*) FROM pg_locks WHERE relation = 'notes'::regclass AND NOT granted"


@pytest.fixture(scope="module")
def database(newest_pg: Cluster) -> PolicyDatabase:
    made = PolicyDatabase(newest_pg, "live_tables_rls")
    made.sql(TABLE)
    return made


@pytest.fixture(scope="module")
def server(database: PolicyDatabase) -> Iterator[ServerProcess]:
    with contextlib.closing(ServerProcess(database.server_url, **SETTINGS)) as made:
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


def test_columns_can_have_names_of_aliases(server: ServerProcess, database: PolicyDatabase) -> None:
    """In the statement of the first rows, and in the one that checks changes."""
    database.sql(
        "CREATE TABLE aliases (id int PRIMARY KEY, l text, r text, k text, image text);"
        "INSERT INTO aliases VALUES (1, 'a');"
        "ALTER TABLE aliases ENABLE ROW LEVEL SECURITY; CREATE POLICY l ON aliases FOR SELECT USING (l <> 'hidden');"
        "GRANT SELECT ON aliases TO authenticated; SELECT socketio_pg.watch('aliases')"
    )  # fmt: skip
    with connect(server, "alice", strict=True) as client:
        assert client.table("public.aliases")["rows"] == 1
        database.sql("INSERT INTO aliases VALUES (2, 'b', 'c', 'd', 'e'), (3, 'hidden', '', '', '')")
        client.wait_rows([
            {"id": 1, "l": "a", "r": None, "k": None, "image": None},
            {"id": 2, "l": "b", "r": "c", "k": "d", "image": "e"},
        ])  # fmt: skip
        assert "hidden" not in repr(client.log)


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


def test_the_last_client_learns_that_its_rows_cannot_be_checked(
    server: ServerProcess, database: PolicyDatabase
) -> None:
    with connect(server, "alice") as client:
        client.table("public.notes")
        client.next("live")
        database.sql("REVOKE SELECT (id, owner, text) ON notes FROM authenticated")
        try:
            database.sql("INSERT INTO notes VALUES (1, 'alice')")
            assert client.next("unsubscribed")["reason"] == "forbidden"
        finally:
            database.sql("GRANT SELECT (id, owner, text) ON notes TO authenticated")


def test_a_request_of_a_lost_connection_is_not_completed_on_the_next_one(
    server: ServerProcess, database: PolicyDatabase
) -> None:
    """It would end the session that the client has recovered."""
    with contextlib.closing(
        RecoveringClient(server.url, auth={"token": mint(sub="alice", role="authenticated")})
    ) as client:
        client.subscribe("user:alice")
        with contextlib.closing(database.connect()) as other, other.cursor() as cursor:
            cursor.execute("LOCK TABLE notes IN ACCESS EXCLUSIVE MODE")
            client.send({"emit": "subscribe", "argument": {"table": "public.notes"}})
            until(lambda: database.sql(WAITING) == [(1,)], "the SELECT waits")
            client.cut()
            assert client.connected()["recovered"]
            other.rollback()
        with connect(server, "alice") as later:  # its rows are read after those of the former request
            later.table("public.notes", limit=3)
            later.next("live")
        client.cut()
        assert client.connected()["recovered"]
        assert not [line for line in client.lines if line.get("event") == "snapshot"]


def test_new_claims_while_the_rows_are_read(server: ServerProcess, database: PolicyDatabase) -> None:
    """Neither rows nor changes follow that the client may see with its former claims only."""
    database.sql("INSERT INTO notes VALUES (1, 'alice'), (2, 'bob')")
    with connect(server, "alice") as first, connect(server, "alice") as again:
        again.table("public.notes")
        again.wait_rows([note(1, "alice")])
        with contextlib.closing(database.connect()) as other, other.cursor() as cursor:
            cursor.execute("LOCK TABLE notes IN ACCESS EXCLUSIVE MODE")
            answered = threading.Event()
            first.io.emit("subscribe", {"table": "public.notes"}, callback=lambda *_: answered.set())
            # Its rows are being read again, as carol.
            assert again.call("authenticate", {"token": mint(sub="carol", role="authenticated")})["ok"]
            until(lambda: database.sql(WAITING) == [(2,)], "both SELECTs wait")
            for client in (first, again):
                assert client.call("authenticate", {"token": mint(sub="bob", role="authenticated")})["ok"]
            other.rollback()
        assert answered.wait(PATIENCE)
        for client in (first, again):
            client.wait_rows([note(2, "bob")])
        database.sql("UPDATE notes SET text = 'x'")
        for client in (first, again):
            client.wait_rows([note(2, "bob", "x")])
        assert "alice" not in repr(first.log)


def test_clients_that_read_slowly(server: ServerProcess, database: PolicyDatabase) -> None:
    """They follow at their own speed: with the changes, or with the rows again where these are checked."""
    database.sql("INSERT INTO notes SELECT n, 'alice', 'a' FROM generate_series(1, 4) AS n")
    with connect(server, "alice") as alice, connect(server, "boss", "service_role", strict=True) as boss:
        for client in (alice, boss):
            client.table("public.notes")
            client.next("live")
            client.reading.clear()
        for n in range(12):
            database.sql(
                "DO $$ BEGIN FOR n IN 1 .. 20 LOOP"
                f" UPDATE notes SET text = repeat(chr(97 + {n}), 20000) || n WHERE id = n % 4 + 1; END LOOP; END $$"
            )
        for client in (alice, boss):
            client.reading.set()
        expected = as_seen(database, None, "true")
        try:
            alice.wait_rows(expected)
            boss.wait_rows({key: {**row, "secret": None} for key, row in expected.items()})
        finally:
            print(server.log[-5000:], f"the other client has {len(boss.log)} events")  # shown when it fails
        assert not boss.problems
        assert boss.snapshots == 1
        assert sum(name == "event" for name, _ in boss.log) == 240


def test_clients_that_come_together_share_what_is_read(server: ServerProcess, database: PolicyDatabase) -> None:
    database.sql("INSERT INTO notes SELECT n, 'alice', 'a' FROM generate_series(1, 50) AS n")
    moved = Moved(server)
    with Swarm("127.0.0.1", server.port) as swarm:
        clients = swarm.open(60)
        for n, client in enumerate(clients):
            client.auth = {"token": mint(sub=USERS[n % 3], role="authenticated")}
        swarm.run_until(lambda: all(client.connected for client in clients))
        for client in clients:
            client.emit("subscribe", {"table": "public.notes"})
        swarm.run_until(lambda: all(client.events("live") for client in clients))
        assert 3 <= moved.by("live_table_snapshots_total")[0] <= 30
        assert moved.by("live_table_rows_total") == [20 * 50]
        database.sql("UPDATE notes SET text = 'b' WHERE id = 7; UPDATE notes SET text = 'c' WHERE id = 8")
        swarm.run_until(lambda: all(len(client.events("event")) == 2 for client in clients[::3]))
        assert not any(client.events("event") for client in clients[1::3])
        # A change is selected once for each user, not for each client.
        assert moved.by("live_table_checked_rows_total")[0] <= 3 * 2


# -- exactness: rows, and changes applied to them, are the table -------------------------------------------------------

USERS = ("alice", "bob", "carol")
WHERE: tuple[tuple[dict[str, Any] | None, str], ...] = (
    (None, "true"),
    ({"text": "a"}, "text = 'a'"),
    ({"id": {"lte": 20}}, "id <= 20"),
    ({"text": {"ne": "b"}}, "text <> 'b'"),
)


def as_seen(database: PolicyDatabase, sub: str | None, condition: str) -> dict[str, Any]:
    """Return the rows that a SELECT as a user shows, or as the boss for None."""
    [(rows,)] = database.sql(
        "SELECT set_config('request.jwt.claims', %s, true), set_config('role', %s, true);"
        "SELECT coalesce(json_agg(json_build_object('id', id, 'owner', owner, 'text', text)), '[]')"
        f" FROM notes WHERE {condition}",
        json.dumps({"sub": sub}), "authenticated" if sub else "service_role",
    )  # fmt: skip
    return {key_of({"id": row["id"]}): row for row in rows}


def exactness(
    server: str, database: PolicyDatabase, disturb: Callable[[Writers], None], count: int, *, follow: bool = False
) -> None:
    """Clients subscribe while writers change the table, and have exactly its rows in the end."""
    chosen = random.Random(7)
    writers = Writers(database.url, 3, owners=USERS)
    with contextlib.ExitStack() as stack:
        clients: list[tuple[TableClient, str | None, str]] = []
        try:
            for n in range(count):
                writers.wait(chosen.randint(1, 8), until)
                sub = (*USERS, None)[n % 4]
                role = "authenticated" if sub else "service_role"
                # Without row-level security each change arrives, exactly once.
                auth = {"token": mint(sub=sub or "boss", role=role)}
                client = TableClient(server, strict=sub is None, follow=follow, auth=auth, wait=True)
                stack.enter_context(client)
                where, condition = WHERE[n // 4 % len(WHERE)]
                answer = client.table("public.notes", where=where)
                assert answer["ok"], answer
                clients.append((client, sub, condition))
                if n == count // 2:
                    disturb(writers)
            writers.wait(20, until)
        finally:
            writers.stop()
        for client, sub, condition in clients:
            expected = as_seen(database, sub, condition)
            client.wait_rows(expected if sub else {key: {**row, "secret": None} for key, row in expected.items()})
            assert not client.problems, (sub, condition, client.problems[:3])


def test_rows_and_changes_are_the_table(server: ServerProcess, database: PolicyDatabase) -> None:
    exactness(server.url, database, lambda writers: None, 16)


@pytest.mark.nightly
@pytest.mark.parametrize("major", [13, 18])
def test_rows_and_changes_are_the_table_across_faults(cluster_of: Callable[[int], Cluster], major: int) -> None:
    """Two workers, one of which is killed; and the database ends all sessions, several times."""
    database = PolicyDatabase(cluster_of(major), "live_tables_faults")
    database.sql(TABLE)
    with contextlib.closing(ServerProcess(database.server_url, "-w", "2", **SETTINGS)) as server:

        def disturb(writers: Writers) -> None:
            for n in range(4):
                if n == 2:
                    os.kill(server.worker_pids()[0], signal.SIGKILL)
                database.sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                writers.wait(30, until)

        exactness(server.url, database, disturb, 24, follow=True)
