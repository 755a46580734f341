"""workers/samples: how the metrics of workers add up, and the counters of those that have ended."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric

from socketio_pg.workers.node import Node
from socketio_pg.workers.samples import CounterFiles, Report, merge


def metrics_of(served: int, waited: float, **by_reason: int) -> list[Metric]:
    registry = CollectorRegistry()
    Counter("served", "Served.", registry=registry).inc(served)
    Histogram("waited", "Waited.", buckets=(1.0, 10.0), registry=registry).observe(waited)
    Gauge("size", "Size.", registry=registry).set(served)
    refused = Counter("refused", "Refused.", ["reason"], registry=registry)
    for reason, number in by_reason.items():
        refused.labels(reason).inc(number)
    return list(registry.collect())


def values(families: list[Metric]) -> dict[str, float]:
    return {
        sample.name + "".join(f" {name}={value}" for name, value in sample.labels.items()): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


class Worker:
    """A worker in the lowest free slot, which has served ``served`` requests."""

    def __init__(self, node: Node, served: int = 0) -> None:
        self.node = Node(node.directory, node._key)
        self.node.join()
        self.files = CounterFiles(self.node)
        self.serve(served)

    def serve(self, served: int) -> None:
        self.files.write(metrics_of(served, 1.0))
        self.report = Report(self.files.generation, metrics_of(served, 1.0))

    def end(self) -> None:
        self.node.leave()


def served(asked: Worker, *answering: Worker) -> float:
    """Return the requests that the node has served, as ``asked`` tells when these workers answer it."""
    reports = {worker.node.slot: worker.report for worker in (asked, *answering)}
    return values(merge(report.families for report in asked.files.complete(reports)))["served_total"]


# -- sums --------------------------------------------------------------------------------------------------------------


def test_samples_of_workers_add_up() -> None:
    one, other = metrics_of(2, 0.5, full=1), metrics_of(3, 5.0, full=2, slow=4)
    assert values(merge([one, other])) == {
        "served_total": 5,
        "waited_bucket le=1.0": 1,
        "waited_bucket le=10.0": 2,
        "waited_bucket le=+Inf": 2,
        "waited_count": 2,
        "waited_sum": 5.5,
        "size": 5,
        "refused_total reason=full": 3,
        "refused_total reason=slow": 4,
    }


def test_sums_do_not_depend_on_the_order() -> None:
    """Whose counters are added first changes when a worker ends, and no counter may fall, however little."""
    parts = [metrics_of(0, waited) for waited in (0.1, 0.2, 0.3)]
    one_by_one = merge([merge([parts[2], parts[1]]), parts[0]])
    assert values(merge(parts))["waited_sum"] == values(one_by_one)["waited_sum"] == 0.6


def test_rules_apply_to_their_family_only() -> None:
    one, other = metrics_of(2, 0.5), metrics_of(3, 0.5)
    for rule, size in ((min, 2), (max, 3)):
        found = values(merge([one, other], {"size": rule}))
        assert (found["size"], found["served_total"]) == (size, 5)


def test_merging_keeps_what_a_family_is_and_since_when_it_counts() -> None:
    one, other = metrics_of(2, 0.5), metrics_of(3, 0.5)
    merged = merge([one, other])
    assert [(family.name, family.type, family.documentation) for family in merged] == [
        (family.name, family.type, family.documentation) for family in one
    ]
    [created] = [sample.value for sample in merged[0].samples if sample.name == "served_created"]
    assert created == min(
        sample.value for family in (one[0], other[0]) for sample in family.samples if sample.name == "served_created"
    )


def test_one_part_stays_as_it_is() -> None:
    part = metrics_of(2, 0.5, full=1)
    assert merge([part]) == part


def test_a_report_is_the_same_after_it_was_sent() -> None:
    report = Report(3, [*metrics_of(2, 0.5, full=1), Metric("nothing", "Infinite.", "gauge")])
    report.families[-1].add_sample("nothing", {}, float("inf"))
    assert Report.decode(report.encode()) == report


# -- workers that have ended -------------------------------------------------------------------------------------------


def test_counters_of_an_ended_worker_stay_in_the_sum(node: Node) -> None:
    one, other = Worker(node, 1), Worker(node, 10)
    assert served(one, other) == 11
    other.end()
    assert served(one) == 11


def test_gauges_of_an_ended_worker_do_not_stay(node: Node) -> None:
    one, other = Worker(node, 1), Worker(node, 10)
    other.end()
    assert values(merge(report.families for report in one.files.complete({0: one.report})))["size"] == 1


def test_counters_of_a_worker_that_does_not_answer_are_those_of_its_last_answer(node: Node) -> None:
    one, other = Worker(node, 1), Worker(node, 10)
    other.serve(20)
    assert served(one) == 21
    assert served(one, other) == 21


def test_many_successors_add_up_in_one_file(node: Node) -> None:
    one = Worker(node, 1)
    for number in range(20):
        successor = Worker(node, 10)
        assert successor.node.slot == 1
        assert served(one, successor) == served(successor, one) == 1 + 10 * (number + 1)
        successor.end()
        assert served(one) == 1 + 10 * (number + 1)
    assert sorted(path.name for path in node.directory.glob("*counters*")) == [
        "0.counters", "1.counters", "ended.counters",
    ]  # fmt: skip


def test_workers_in_several_slots_end_and_return(node: Node) -> None:
    workers = [Worker(node, 1) for _ in range(4)]
    for worker in workers[1:]:
        worker.end()
    assert served(workers[0]) == 4
    successors = [Worker(node, 100) for _ in range(3)]
    assert served(workers[0], *successors) == 304
    assert served(workers[0]) == 304


def test_an_answer_of_a_predecessor_that_comes_late_is_not_counted_twice(node: Node) -> None:
    one, other = Worker(node, 1), Worker(node, 10)
    late = other.report
    other.end()
    successor = Worker(node, 100)
    assert served(one, successor) == 111
    found = one.files.complete({0: one.report, 1: late})
    assert values(merge(report.families for report in found))["served_total"] == 11


def test_a_successor_that_is_killed_before_it_writes_changes_nothing(node: Node) -> None:
    """It has added its predecessor's counters to those of ended workers, and the predecessor's file is still there."""
    one, other = Worker(node, 1), Worker(node, 10)
    other.end()
    for _ in range(2):
        killed = Node(node.directory, node._key)
        killed.join()
        assert CounterFiles(killed).generation == 2
        killed.leave()
        assert (node.directory / "1.counters").exists()
        assert served(one) == 11
    assert served(one, Worker(node, 5)) == 16


def test_files_that_cannot_be_written_are_logged_and_the_living_are_counted(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = Worker(node, 1), Worker(node, 10)
    other.end()
    for name in ("0", "1", "ended"):
        (node.directory / f"{name}.new").mkdir()  # in place of the new file
    one.serve(2)
    successor = Worker(node, 100)
    assert served(one, successor) == 102
    assert "the counters of ended workers will be too low" in caplog.text
