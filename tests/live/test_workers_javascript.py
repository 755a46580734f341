"""Stock JavaScript clients on several workers: long-polling and upgrades, without a balancer and behind nginx."""

import contextlib
import itertools
import json
import ssl
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.metrics import TOKEN, wait_for
from tests.support.nightly import sampled
from tests.support.node import NodeClient
from tests.support.nodes import Nginx
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess

pytestmark = pytest.mark.green

WORKERS, GROUPS, ANNOUNCED, EACH = 4, 10, 50, 2
#: The most clients that one worker may have more than its share: of all clients, and the router's slack.
UNEVEN, SLACK = 0.05, 8


class Fleet(NodeClient):
    """`number` clients in one process, of which those with the same number modulo GROUPS share a channel."""

    def __init__(self, url: str, transports: str, number: int, **options: object) -> None:
        self.number = number
        super().__init__(url, transports, "fleet.mjs", json.dumps({"clients": number, "groups": GROUPS, **options}))

    def run(self, command: str, **arguments: object) -> Any:
        """Return what a command returns, which must have caused no error and no reconnect."""
        self.send({"command": command, **arguments})
        answer = self.next(kind="answer")
        assert answer["problems"] == [], (len(answer["problems"]), answer["problems"][:20])
        return answer["answer"]


@contextlib.contextmanager
def _node(cluster: Cluster, *options: str, workers: int = WORKERS, wait: str = "ready") -> Iterator[ServerProcess]:
    settings = {"DRAIN_SECONDS": "0.2", "METRICS_TOKEN": TOKEN, "TRUSTED_PROXIES": "1"}
    with contextlib.closing(ServerProcess(cluster.url(), "-w", str(workers), *options, wait=wait, **settings)) as made:
        yield made


@pytest.fixture(scope="module")
def server(newest_pg: Cluster) -> Iterator[ServerProcess]:
    with _node(newest_pg) as made:
        yield made


@pytest.fixture(scope="module")
def nginx(server: ServerProcess) -> Iterator[Nginx]:
    """Its connections to the node are kept alive, and each carries requests of many clients."""
    with contextlib.closing(Nginx([server.port])) as made:
        yield made


def _answers(url: str, context: ssl.SSLContext) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE, context=context):
            return True
    except OSError:
        return False


def _subscribe_and_publish(fleet: Fleet, cluster: Cluster) -> None:
    """Each client gets what its group and what the database publishes, once and in order."""
    fleet.run("subscribe")
    cluster.sql("SELECT pg_notify('all', n::text) FROM generate_series(1, %s) AS n", ANNOUNCED)
    fleet.run("publish", each=EACH)
    published = fleet.number // GROUPS * EACH
    clients = fleet.run("received", all=ANNOUNCED, group=published)
    for number, client in enumerate(clients):
        assert client["all"] == list(range(1, ANNOUNCED + 1))
        group = [tuple(payload) for payload in client["group"]]
        assert sorted(group) == [
            (other, n) for other in range(number % GROUPS, fleet.number, GROUPS) for n in range(EACH)
        ]
        for other in {other for other, _ in group}:
            assert [n for publisher, n in group if publisher == other] == list(range(EACH))
        assert client["group"] == clients[number % GROUPS]["group"], "the order is the same for all"


@pytest.mark.parametrize(
    ("transports", "clients", "behind"),
    sampled(
        itertools.product(("polling", "polling,websocket"), (40, 200), ("nothing", "nginx")),
        lambda case: case in (("polling", 40, "nginx"), ("polling,websocket", 40, "nothing")),
    ),
)
def test_clients_share_workers(
    request: pytest.FixtureRequest,
    server: ServerProcess,
    newest_pg: Cluster,
    transports: str,
    clients: int,
    behind: str,
) -> None:
    entrance = server if behind == "nothing" else request.getfixturevalue("nginx")
    with contextlib.closing(Fleet(entrance.url, transports, clients)) as fleet:
        _subscribe_and_publish(fleet, newest_pg)
        assert set(fleet.run("transports")) == {transports.rpartition(",")[2]}
        shares = [f'worker_clients{{worker="{number}"}}' for number in range(WORKERS)]
        samples = wait_for(server, lambda now: sum(now.get(name, 0) for name in shares) == clients)
        most = clients * (1 / WORKERS + UNEVEN) + SLACK
        assert max(samples[name] for name in shares) <= most, [samples[name] for name in shares]


@pytest.mark.parametrize("transports", sampled(["polling", "polling,websocket"], lambda names: "," in names))
def test_tls_ends_in_any_worker(newest_pg: Cluster, certificate: tuple[str, str], transports: str) -> None:
    """The worker that has accepted a connection decrypts it for the one that has the session."""
    key, chain = certificate
    with _node(newest_pg, "--keyfile", key, "--certfile", chain, workers=2, wait="nothing") as server:
        url = f"https://127.0.0.1:{server.port}"
        unverified = ssl.create_default_context()
        unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
        until(lambda: _answers(f"{url}/readyz", unverified), "the workers are ready")
        with contextlib.closing(Fleet(url, transports, 20, rejectUnauthorized=False)) as fleet:
            _subscribe_and_publish(fleet, newest_pg)
            assert set(fleet.run("transports")) == {transports.rpartition(",")[2]}
