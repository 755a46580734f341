"""A separate database with a server, for tests of the log."""

import contextlib
from typing import Any

import psycopg2

from tests.support.clients import SocketClient
from tests.support.patience import until
from tests.support.postgres import Cluster, in_thread
from tests.support.server import APP, ServerProcess


class Log:
    """A separate database with a server."""

    def __init__(self, cluster: Cluster, name: str, *options: str, app: str = APP, **settings: str) -> None:
        cluster.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        cluster.sql(f"CREATE DATABASE {name}")
        self.url = cluster.url(name)
        self.server = ServerProcess(self.url, *options, app=app, DRAIN_SECONDS="0.2", **settings)

    def sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        return in_thread(self._sql, statement, parameters)  # type: ignore[no-any-return]

    def _sql(self, statement: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with contextlib.closing(psycopg2.connect(self.url)) as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            connection.commit()
            return list(cursor.fetchall()) if cursor.description else []

    def publish(self, channel: str, first: int, last: int, pad: int = 0) -> None:
        """Publish the payloads ``[n, "xxx"]`` for n from ``first`` to ``last``, in one transaction."""
        self.sql(
            "SELECT socketio_pg.publish(%s, jsonb_build_array(n, repeat('x', %s))) FROM generate_series(%s, %s) AS n",
            channel, pad, first, last,
        )  # fmt: skip

    def settle(self) -> None:
        """Wait until all published messages have positions, and the server knows them."""
        with SocketClient(self.server.url) as client:

            def settled() -> bool:
                known = client.call("subscribe", {"channel": "anything"}).get("position", -1)
                [(waiting, head)] = self.sql(
                    "SELECT (SELECT count(*) FROM socketio_pg.outbox), (SELECT max(position) FROM socketio_pg.log)"
                )
                return not waiting and known >= head

            until(settled, "all messages have positions")


def wait_installed(log: Log) -> None:
    """Wait until the server has detected the log."""
    with SocketClient(log.server.url) as client:

        def installed() -> bool:
            client.call("unsubscribe", {"channel": "anything"})
            return "position" in client.call("subscribe", {"channel": "anything"})

        until(installed, "the server has detected the log")


def numbers(client: SocketClient, count: int) -> list[int]:
    """Return the numbers in the next ``count`` messages."""
    return [client.next("event")["payload"][0] for _ in range(count)]


def since(answer: dict[str, Any], position: int | None = None) -> dict[str, Any]:
    return {"epoch": answer["epoch"], "position": answer["position"] if position is None else position}
