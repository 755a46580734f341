"""A node with several workers from outside: whichever worker is asked answers for all, also after one has ended."""

import contextlib
import http.client
import itertools
import json
import os
import re
import signal
from collections.abc import Iterator

import pytest

from tests.support import cli
from tests.support.clients import SocketClient
from tests.support.log import Log, wait_installed
from tests.support.metrics import TOKEN, Samples, samples_in, scrape, wait_for
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.server import PATIENT, ServerProcess

#: Counters that move only when the test does something. Counters of time and of idle connections move always.
STEADY = re.compile(r"(opened_connections|errors|replays|publish_duration_seconds|commit_messages|delivered_\w+)_.*")


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "viewed", "-w", "2", AUTO_INIT="1", METRICS_TOKEN=TOKEN, **PATIENT)
    wait_installed(made)
    yield made
    made.server.close()


@pytest.fixture
def server(log: Log) -> ServerProcess:
    log.server.wait_ready()
    wait_for(log.server, lambda now: now["clients"] == 0 and now['workers{state="answering"}'] == 2)
    return log.server


class Client(SocketClient):
    """A client whose worker can be asked: a connection goes to the worker that has the session of a request."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        super().__init__(server.url, transports=("polling",))

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=PATIENCE)
        try:
            connection.request("POST", f"/socket.io/?EIO=4&transport=polling&sid={self.io.eio.sid}", "3")  # a pong
            assert connection.getresponse().read().lower() == b"ok"
            connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def scrape(self) -> Samples:
        return samples_in(self.get("/metrics")[1])


@pytest.fixture
def both(server: ServerProcess) -> Iterator[tuple[Client, Client]]:
    """Two clients of different workers."""
    with contextlib.ExitStack() as stack:
        clients: list[Client] = []

        def meets_another_worker() -> bool:
            """Connect one client more, and tell whether it is the first one of its worker."""
            clients.append(Client(server))
            stack.callback(clients[-1].close)
            now = clients[-1].scrape()
            return all(now[f'worker_clients{{worker="{slot}"}}'] for slot in range(2))

        until(meets_another_worker, "both workers have a client")  # one that has too many passes new sessions on
        for client in clients[1:-1]:
            client.close()
        wait_for(server, lambda now: now["clients"] == 2)
        yield clients[0], clients[-1]


def steady(samples: Samples) -> Samples:
    found = {name: value for name, value in samples.items() if STEADY.fullmatch(name) and "_created" not in name}
    assert len(found) > 30
    return found


def fallen(before: Samples, after: Samples) -> set[str]:
    """Return the counters that have fallen."""
    counters = {name for name in before if re.search(r"_(total|count|sum|bucket)\b", name)}
    assert len(counters) > 100
    return {
        name for name in counters if not name.startswith("worker_cpu") and after.get(name, float("-inf")) < before[name]
    }


@pytest.mark.green
def test_each_worker_tells_the_sums(log: Log, both: tuple[Client, Client], channel: str) -> None:
    before = both[0].scrape()
    for client in both:
        client.call("subscribe", {"channel": channel})
        client.call("subscribe", {"channel": ""})
    subscribed = both[0].scrape()
    log.sql("SELECT pg_notify(%s, '1'), pg_notify(%s, '2')", channel, channel)
    for client in both:
        assert [client.next("event")["payload"] for _ in range(2)] == [1, 2]
    found = [client.scrape() for _ in range(5) for client in both]
    assert all(steady(samples) == steady(found[0]) for samples in found)
    assert not set().union(*(fallen(*pair) for pair in itertools.pairwise(found)))
    assert [found[0][name] - before[name] for name in ('errors_total{code="invalid_channel"}', "subscriptions")] == [
        2,
        2,
    ]
    # Once for each worker, and once for each client.
    names = ('messages_total{tier="notify"}', 'delivered_frames_total{transport="polling"}')
    assert [found[0][name] - subscribed[name] for name in names] == [4, 4]


def test_gauges_of_the_worker_that_listens_are_those_of_the_node(
    log: Log, server: ServerProcess, both: tuple[Client, Client], channel: str
) -> None:
    for client in both:
        client.call("subscribe", {"channel": channel})
    log.publish(channel, 1, 3)
    log.settle()
    [(head,)] = log.sql("SELECT max(position) FROM socketio_pg.log")
    until(lambda: scrape(server)["log_position"] == head, "both workers have delivered the log")
    # The database was perhaps last measured before the log was installed.
    measured = {"outbox_messages", "notify_queue_usage_ratio"}
    wait_for(server, lambda now: measured <= now.keys())
    for client in both:
        now = client.scrape()
        assert [now[name] for name in ("relay_leading", "listen_connections", "log_behind_messages")] == [1, 1, 0]
        assert measured <= now.keys()
        assert [now[f'worker_clients{{worker="{slot}"}}'] for slot in range(2)] == [1, 1]
        assert now["listened_channels"] > 1


def test_a_killed_worker_makes_no_counter_fall_and_the_node_unready_until_it_is_replaced(
    log: Log, server: ServerProcess, both: tuple[Client, Client], channel: str
) -> None:
    for client in both:
        assert client.call("publish", {"channel": channel, "payload": 1})["ok"]
    # Some things are counted after the answer.
    until(lambda: steady(both[0].scrape()) == steady(both[1].scrape()), "both workers have the same counts")
    before = both[0].scrape()
    # The master cannot replace the worker yet.
    server.process.send_signal(signal.SIGSTOP)
    try:
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        server.wait_for("/readyz", 503, "not running")
        status, body = server.get("/readyz")
        assert re.fullmatch(r"worker [01]: not running", json.loads(body)["parts"]["process"]), body
        assert status == 503
        assert server.get("/healthz")[0] == 200
        missing = scrape(server)
        assert missing['workers{state="answering"}'] == 1
        assert missing['ready{part="process"}'] == 0
        assert not fallen(before, missing)
    finally:
        server.process.send_signal(signal.SIGCONT)
    server.wait_ready()
    after = wait_for(server, lambda now: now['workers{state="answering"}'] == 2)
    assert not fallen(missing, after)
    assert after['ready{part="process"}'] == 1


def test_final_counters_of_a_worker_that_ends_gracefully_stay(server: ServerProcess, channel: str) -> None:
    """Nobody has scraped between the events and the end."""
    name = 'errors_total{code="invalid_channel"}'
    before = scrape(server)[name]
    with Client(server) as one, Client(server) as other:
        for client in (one, other):
            for _ in range(3):
                client.call("subscribe", {"channel": ""})
    for pid in (pids := server.worker_pids()):
        os.kill(pid, signal.SIGTERM)
    until(lambda: not set(pids) & set(server.worker_pids()), "both workers have ended")
    server.wait_ready()
    now = wait_for(server, lambda now: now['workers{state="answering"}'] == 2)
    assert now[name] - before == 6


def test_the_others_serve_while_a_worker_drains(newest_pg: Cluster) -> None:
    """As at the last of --max-requests, until gunicorn has stopped it."""
    server = ServerProcess(
        newest_pg.url(), "-w", "2", app="tests.support.draining_app:app", METRICS_TOKEN=TOKEN, DRAIN_SECONDS="0"
    )
    try:
        assert server.get("/drain") == (200, "draining")
        server.wait_for("/readyz", 503, "shutting down")
        for _ in range(20):
            assert server.get("/healthz")[0] == 200
            assert scrape(server)['workers{state="answering"}'] == 2
            status, body = server.get("/readyz")
            assert status == 503
            assert re.fullmatch(r"worker [01]: shutting down", json.loads(body)["reason"]), body
    finally:
        server.close()


def test_status_shows_the_workers(log: Log, server: ServerProcess, both: tuple[Client, Client]) -> None:
    def nodes() -> list[dict[str, object]]:
        found: list[dict[str, object]] = json.loads(cli.run("status", "--json", url=log.url).stdout)["nodes"]
        return found

    def described() -> bool:
        [node] = nodes()
        workers = node["workers"]
        assert isinstance(workers, list)
        return (
            node["name"] == f"{os.uname().nodename}:{server.process.pid}"
            and node["clients"] == 2
            and [worker["clients"] for worker in workers] == [1, 1]
            and [worker["slot"] for worker in workers] == [0, 1]
            and {worker["pid"] for worker in workers} == set(server.worker_pids())
            and sum(worker["listens"] for worker in workers) == 1
            and not any(worker["problem"] for worker in workers)
        )

    until(described, "the leader has described the node")
    lines = cli.run("status", url=log.url).stdout.splitlines()
    assert len([line for line in lines if line.endswith("ready")]) == 2
