"""gateway/node_metrics: each worker answers for the whole node."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from socketio_pg.core import green
from socketio_pg.gateway.gauges import GAUGES
from socketio_pg.gateway.node_metrics import GAUGE_RULES, NodeMetrics
from socketio_pg.workers.node import Node
from socketio_pg.workers.peers import Peers
from tests.support.patience import until
from tests.support.peers import meet


class Worker:
    """A worker of the node in this process, with metrics of its own."""

    def __init__(self, node: Node, **gauges: float) -> None:
        self.node = Node(node.directory, node._key)
        self.peers = Peers(self.node)
        counters, measured = CollectorRegistry(), CollectorRegistry()
        ProcessCollector(registry=counters)
        self.served = Counter("served", "Served.", registry=counters)
        for name, value in ({"clients": 0.0} | gauges).items():
            Gauge(f"socketio_pg_{name}", "A gauge.", registry=measured).set(value)
        self.ready = Gauge("socketio_pg_ready", "Ready.", ["part"], registry=measured)
        for part in ("process", "relay"):
            self.ready.labels(part).set(1)
        self.metrics = NodeMetrics(self.node, self.peers, measured.collect, counters)
        self.peers.start()

    def scrape(self) -> dict[str, float]:
        return {
            sample.name.removeprefix("socketio_pg_")
            + "".join(f" {value}" for value in sample.labels.values()): sample.value
            for family in text_string_to_metric_families(self.metrics.render()[0].decode())
            for sample in family.samples
        }


@pytest.fixture
def workers(node: Node) -> Iterator[list[Worker]]:
    node.wanted = 3
    made = [Worker(node, clients=number, log_position=10 - number, listened_channels=number) for number in range(3)]
    meet(*made)
    yield made
    for worker in made:
        worker.peers.stop()


def test_each_gauge_has_its_rule_or_is_a_sum() -> None:
    """A new gauge needs a decision: the sum, or a rule."""
    assert set(GAUGES) - set(GAUGE_RULES) == {
        "connections", "slow_connections", "send_buffer_bytes", "clients", "subscriptions", "channels",
        "largest_room_subscriptions", "filtered_subscriptions", "filters", "held_subscriptions",
        "publish_waiting_messages", "patterns", "pattern_subscriptions", "presence_memberships",
        "presence_watched_channels",
    }  # fmt: skip
    assert set(GAUGE_RULES) - set(GAUGES) == {"build_info"}


def test_all_workers_answer_the_same(workers: list[Worker]) -> None:
    for number, worker in enumerate(workers, 1):
        worker.served.inc(number)
    for found in [worker.scrape() for worker in workers for _ in range(3)]:
        assert found["served_total"] == 6
        assert [found[name] for name in ("clients", "log_position", "listened_channels")] == [3, 8, 2]
        assert [found[f"worker_clients {slot}"] for slot in range(3)] == [0, 1, 2]
        assert [found[f"workers {state}"] for state in ("wanted", "answering")] == [3, 3]


def test_a_part_is_ready_when_it_is_in_all_workers(workers: list[Worker]) -> None:
    workers[1].ready.labels("relay").set(0)
    found = workers[2].scrape()
    assert [found["ready process"], found["ready relay"]] == [1, 0]


def test_a_node_without_one_of_its_workers_is_not_ready(node: Node, workers: list[Worker]) -> None:
    node.wanted = 4
    found = workers[0].scrape()
    assert [found["ready process"], found["ready relay"]] == [0, 1]
    assert [found["workers wanted"], found["workers answering"]] == [4, 3]


def test_final_counters_stay_when_a_worker_ends(workers: list[Worker]) -> None:
    workers[1].served.inc(5)
    assert workers[0].scrape()["served_total"] == 5
    workers[1].served.inc(2)
    workers[1].metrics.keep()
    workers[1].peers.stop()
    found = workers[0].scrape()
    assert found["served_total"] == 7
    assert found["workers answering"] == 2
    assert found["clients"] == 2
    assert "worker_clients 1" not in found
    workers.pop(1)


def test_a_successor_takes_the_slot_and_starts_again(node: Node, workers: list[Worker]) -> None:
    for worker in workers:
        worker.served.inc(5)
    assert workers[0].scrape()["served_total"] == 15
    workers.pop(1).peers.stop()
    successor = Worker(node)
    assert successor.node.slot == 1
    workers.append(successor)
    meet(*workers)
    successor.served.inc()
    assert [worker.scrape()["served_total"] for worker in workers] == [16] * 3


_WORKER = """
import sys
from pathlib import Path
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from socketio_pg.core import green
from socketio_pg.gateway.node_metrics import NodeMetrics
from socketio_pg.workers.node import Node
from socketio_pg.workers.peers import Peers
node = Node(Path(sys.argv[1]), bytes.fromhex(sys.argv[2]))
peers = Peers(node)
counters, gauges = CollectorRegistry(), CollectorRegistry()
ProcessCollector(registry=counters)
Counter("served", "Served.", registry=counters).inc(100)
Gauge("socketio_pg_clients", "Clients.", registry=gauges).set(7)
metrics = NodeMetrics(node, peers, gauges.collect, counters)
peers.start()
while True:
    green.sleep(60)
"""


@pytest.fixture
def process(node: Node) -> Iterator[subprocess.Popen[str]]:
    """A worker in a process of its own."""
    with subprocess.Popen([sys.executable, "-c", _WORKER, str(node.directory), node._key.hex()], text=True) as started:
        yield started
        started.kill()


def test_counters_of_a_killed_worker_do_not_fall(
    node: Node, workers: list[Worker], process: subprocess.Popen[str]
) -> None:
    one = workers[0]
    until(lambda: green.sleep() or one.scrape()["served_total"] == 100, "the process is counted")
    before = one.scrape()
    assert before["clients"] == 10
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: green.sleep() or one.scrape()["workers answering"] == 3, "the process is missed")
    after = one.scrape()
    assert after["served_total"] == 100
    assert after["process_cpu_seconds_total"] >= before["process_cpu_seconds_total"]
    assert after["clients"] == 3


def test_a_stopped_worker_is_missing_after_a_while_and_its_counters_are_not(
    node: Node, workers: list[Worker], process: subprocess.Popen[str]
) -> None:
    node.wanted = 4
    one = workers[0]
    until(lambda: green.sleep() or one.scrape()["served_total"] == 100, "the process is counted")
    assert one.scrape()["ready process"] == 1
    process.send_signal(signal.SIGSTOP)
    one.metrics.timeout = 0.1

    def found() -> list[float]:
        scraped = one.scrape()
        return [scraped["served_total"], scraped["workers answering"], scraped["ready process"]]

    # On a busy machine the others may not answer in that time either.
    until(lambda: found() == [100, 3, 0], "the other three answer")
    process.send_signal(signal.SIGCONT)
    until(lambda: green.sleep() or one.scrape()["workers answering"] == 4, "the process answers again")
    assert one.scrape()["served_total"] == 100
