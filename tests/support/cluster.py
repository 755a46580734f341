"""Two nodes of an application that uses Flask-SocketIO's API, or two workers of one, and their clients."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import requests

from socketio_pg import PostgresManager, RedisManager
from tests.support.clients import SocketClient
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.redis import Redis
from tests.support.server import ServerProcess

APP = "tests.support.rooms_app:app"
CLUSTER_KEY = "a random text that no other cluster has"


class Member(SocketClient):
    """A client that records all arguments of ``news``, and answers questions with the question."""

    EVENTS = (*SocketClient.EVENTS, "news")

    def __init__(self, url: str, *rooms: str, transports: tuple[str, ...] = ("websocket",)) -> None:
        super().__init__(url, transports)
        self.io.on("question", self.answer)
        self.sid: str = self.next("server_hello")["sid"]
        for room in rooms:
            self.call("join", room)

    def __enter__(self) -> "Member":
        return self

    @staticmethod
    def answer(question: Any) -> Any:
        return b"\0\xff" * 3 if question == "binary" else {"asked": question}

    def _recorder(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self._events[name].put(
            arguments if name == "news" else arguments[0] if arguments else None
        )


class Cell:
    """Two nodes and their queue; of the kind ``workers``, two workers of one node, which need none."""

    def __init__(self, newest_pg: Cluster, kind: str) -> None:
        self.kind = kind
        self.redis = Redis() if kind == "redis" else None
        self.database_url = newest_pg.url()
        #: The process of each worker.
        self._pids: list[int] = []
        if kind == "workers":
            server = ServerProcess(self.database_url, "-w", "2", app=APP)
            until(lambda: len(server.worker_pids()) == 2, "both workers run")
            self.nodes, self._pids = [server, server], server.worker_pids()
            return
        self.queue = (
            os.environ["KAFKA_URL"] if kind == "kafka" else "postgres" if self.redis is None else self.redis.url
        )
        # The database has no schema.
        settings = {"MESSAGE_QUEUE": self.queue, "CLUSTER_KEY": CLUSTER_KEY}
        self.nodes = [ServerProcess(self.database_url, app=APP, **settings) for _ in range(2)]

    def member(self, node: int, *rooms: str, transports: tuple[str, ...] = ("websocket",)) -> Member:
        """Return a client of that node or worker."""
        while True:
            made = Member(self.nodes[node].url, *rooms, transports=transports)
            if not self._pids or made.call("pid") == self._pids[node]:
                return made
            made.close()

    def _session(self, node: int) -> requests.Session:
        """Return a session whose connection leads to that node or worker."""
        while True:
            session = requests.Session()
            if not self._pids:
                return session
            if int(session.get(f"{self.nodes[node].url}/pid", timeout=PATIENCE).text) == self._pids[node]:
                return session
            session.close()

    def post(self, node: int, path: str, body: Any = None, method: str = "POST") -> Any:
        with self._session(node) as session:
            answer = session.request(method, f"{self.nodes[node].url}{path}", json=body, timeout=PATIENCE)
        assert answer.status_code == 200, answer.text
        return answer.text if answer.text == "done" else answer.json()

    def emit(self, node: int, data: Any, **options: Any) -> None:
        assert self.post(node, "/emit", {"data": data, **options}) == "done"

    def writer(self) -> Any:
        """Return a write-only manager, as used by programs that are not servers."""
        if self.kind == "kafka":
            pytest.skip("python-socketio's own manager does not work with kafka-python")
        if self.redis is None:
            return PostgresManager(self.database_url, write_only=True, cluster_key=CLUSTER_KEY)
        return RedisManager(self.redis.url, self.database_url, cluster_key=CLUSTER_KEY)

    def close(self) -> None:
        for node in self.nodes:
            node.close()
        if self.redis is not None:
            self.redis.close()


def only_news(members: Sequence[Member]) -> list[tuple[Any, ...]]:
    """Return the arguments of the single ``news`` that each member has received."""
    found = [member.next("news") for member in members]
    assert [member.pending("news") for member in members] == [0] * len(members)
    return found
