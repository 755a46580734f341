"""A database with the log, without a server: tests do the relay's work themselves."""

import contextlib
from typing import Any

import psycopg2
from click.testing import CliRunner

from socketio_pg.cli import main as cli
from socketio_pg.log.epochs import Cluster as DatabaseCluster
from socketio_pg.log.epochs import check
from socketio_pg.log.low_water import LowWater
from socketio_pg.log.moves import PREPARE, Moved, move
from tests.support.postgres import Cluster, in_thread

MAX_PAYLOAD = 100_000


#: A cluster's database with a new log, from which others are copied: to install each would take three times as long.
TEMPLATE = "log_template"

# What no two databases have in common.
_OWN = """
UPDATE socketio_pg.head SET epoch = DEFAULT;
UPDATE socketio_pg.cluster_key SET created_at = DEFAULT,
    key = sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));
"""


class LogDatabase:
    """A separate database in a cluster, with the log installed."""

    def __init__(self, cluster: Cluster, name: str = "log") -> None:
        self.cluster, self.name = cluster, name
        self.url = cluster.url(name)
        if not cluster.sql("SELECT 1 FROM pg_database WHERE datname = %s", TEMPLATE):
            cluster.sql(f"CREATE DATABASE {TEMPLATE}")
            run_cli("init", url=cluster.url(TEMPLATE))
        cluster.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        cluster.sql(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        self.sql(_OWN)

    def install(self, **roles: str) -> None:
        run_cli("init", *(part for name, role in roles.items() for part in (f"--{name}-role", role)), url=self.url)

    def connect(self, **options: Any) -> Any:
        connection = psycopg2.connect(self.url, **options)
        connection.autocommit = True
        return connection

    def sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    def publish(self, channel: str, *payloads: str) -> None:
        """Publish ``payloads`` in one transaction."""
        self.sql("SELECT socketio_pg.publish(%s, p::jsonb) FROM unnest(%s) AS p", channel, list(payloads))

    def move(self, most: int = 1000, connection: Any = None) -> int:
        """Relay one batch in the current term. Return the number of moved messages."""
        with contextlib.ExitStack() as stack:
            if connection is None:
                connection = stack.enter_context(contextlib.closing(self.connect()))
                prepare(connection)
            return move_everything(connection, most).count

    def log(self) -> list[tuple[int, str, Any]]:
        return self.sql("SELECT position, channel, payload FROM socketio_pg.log ORDER BY position")


def prepare(connection: Any) -> None:
    """Prepare ``connection`` for :func:`move_everything`."""
    with connection.cursor() as cursor:
        cursor.execute(PREPARE)


def move_everything(connection: Any, most: int, term: int | None = None) -> Moved:
    """Move up to ``most`` messages from the first id on, in the current term or in ``term``, with readable NOTIFYs."""
    if term is None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT term FROM socketio_pg.head")
            term = cursor.fetchone()[0]
    past, _ = check(connection, term, DatabaseCluster(None, None), None, 30.0)
    moved, _ = move(connection, term, most, LowWater(), past, lambda channel, text: text, 30.0, full=True)
    return moved


def run_cli(*arguments: str, url: str) -> str:
    # In a real thread: psycopg2's green wait callback is process-wide, and the test may run in a green thread.
    environment = {"DATABASE_URL": url, "MAX_PAYLOAD": str(MAX_PAYLOAD)}
    result = in_thread(lambda: CliRunner().invoke(cli.main, list(arguments), env=environment))
    assert result.exit_code == 0, result.output
    output: str = result.output
    return output
