"""cluster/bus: messages and questions between processes, who is there, and what was missed."""

import json
from collections.abc import Callable, Iterator

import pytest

from socketio_pg.cluster.processes import Process, Processes
from socketio_pg.core import green, metrics
from socketio_pg.core.errors import PayloadTooLargeError
from socketio_pg.workers.node import Node
from tests.support.bus import Quick, Wire, know, wait

Make = Callable[..., Quick]


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def make(wire: Wire) -> Iterator[Make]:
    made: list[Quick] = []

    def add(node: Node | None = None) -> Quick:
        made.append(Quick(wire.end(), node))
        return made[-1]

    yield add
    for bus in made:
        bus.die()


def words(bus: Quick, sender: Quick) -> list[object]:
    return [body for found, body in bus.received if found == sender.own.id]


def never_late(*buses: Quick) -> None:
    """Let them take nobody for dead, themselves included: on a busy machine all of them stall for longer than that."""
    for bus in buses:
        bus._processes.patience = 10_000


def test_nodes_find_each_other_and_exchange_messages_in_order(make: Make, wire: Wire) -> None:
    one = make()
    wait(lambda: one._sending.settled and not one.has_other_nodes, "one is alone")
    sent = wire.texts
    for number in range(100):
        one.tell("word", number)  # to nobody
    assert one._sending.idle
    assert wire.texts == sent
    two, three = make(), make()
    know(one, two, three)
    assert [process.worker for process in one.processes] == [None, None]
    assert all(process.name.rpartition(":")[2].isdecimal() for process in one.processes)
    never_late(one, two, three)
    missed = [bus.gaps for bus in (one, two, three)]
    for number in range(300):
        one.tell("word", {"n": number, "text": "€\0"})
        two.tell("word", number)
    wait(lambda: len(three.received) >= 600 and len(two.received) >= 300, "all messages arrive")
    assert words(three, one) == words(two, one) == [{"n": number, "text": "€\0"} for number in range(300)]
    assert words(three, two) == words(one, two) == list(range(300))
    assert [bus.gaps for bus in (one, two, three)] == missed
    with pytest.raises(PayloadTooLargeError):
        one.tell("word", "x" * one.max_characters)


def test_questions_name_the_processes_that_do_not_answer(make: Make, node: Node) -> None:
    one, two, three = make(), make(node), make(node)
    know(one, two, three)
    assert one.ask("double", 4, 5.0) == {two.own.id: 8, three.own.id: 8}
    assert two.ask("double", [1], 5.0) == {one.own.id: [1, 1], three.own.id: [1, 1]}
    # Neither has it, and one fails: no reason to wait for the end of the time.
    one.answer("failing", lambda sender, body: 1 / 0)
    answers = two.ask("failing", None, 60.0)
    assert answers == {}
    assert {process.id for process in answers.silent} == {one.own.id, three.own.id}
    two.die()
    answers = one.ask("double", 1, 60.0)  # ends when the dead one is noticed
    assert {process.id for process in answers.silent} <= {two.own.id}
    assert answers[three.own.id] == 2
    know(one, three)


def test_workers_of_a_node_need_no_other_way(make: Make, node: Node, wire: Wire) -> None:
    one, two = make(node), make(node)
    know(one, two)
    sent = wire.texts
    one.tell("word", 1)
    two.tell("word", 2)
    wait(lambda: one.received == [(two.own.id, 2)] and two.received == [(one.own.id, 1)], "both arrive")
    assert one._sending.idle
    assert not one.has_other_nodes
    assert wire.texts <= sent + 2
    other = make()
    know(one, two, other)
    assert sorted(process.worker or 0 for process in other.processes) == [0, 1]
    assert len({process.node for process in other.processes}) == 1
    one.tell("word", 3)
    wait(lambda: other.received == [(one.own.id, 3)] and (one.own.id, 3) in two.received, "it arrives everywhere")
    assert [body for _, body in two.received] == [1, 3]
    # The one that sends the beats ends: another one sends them.
    one.close()
    know(two, other)
    successor = make(node)
    know(two, other, successor)
    two.die()
    know(other, successor)
    last = make(node)
    know(other, successor, last)
    ticks = other._processes._ticks
    green.run_together([successor.stop, last.stop])
    wait(lambda: not other.processes, "the node has left")
    assert other._processes._ticks < ticks + other._processes.patience
    green.sleep(2 * other.interval)
    left = [process.id for process in other.departed]
    assert left[:2] == [one.own.id, two.own.id]
    assert sorted(left[2:]) == sorted([successor.own.id, last.own.id])


def test_a_process_that_is_silent_leaves_and_one_that_stops_says_so(make: Make) -> None:
    one, two, three = make(), make(), make()
    know(one, two, three)
    two.die()
    wait(lambda: [process.id for process in one.departed] == [two.own.id], "the dead one is noticed")
    wait(lambda: [process.id for process in three.departed] == [two.own.id], "by both")
    three.tell("word", "last")
    ticks = one._processes._ticks
    three.close()
    wait(lambda: not one.processes, "the other one has said bye")
    assert one._processes._ticks < ticks + one._processes.patience
    assert words(one, three) == ["last"]
    three.tell("word", "after the end")
    assert one.ask("double", 1, 60.0) == {}


def test_after_an_outage_nobody_has_left_and_what_was_missed_is_noticed(make: Make, wire: Wire) -> None:
    """Each of them hears nothing for longer than a dead one would be waited for, not even itself."""
    buses = one, two, three = make(), make(), make()
    know(*buses)
    for end in wire.ends:
        end.up = False
    ticks = [bus._processes._ticks for bus in buses]
    for number in range(20):
        one.tell("word", number)
    wait(lambda: one._sending.idle, "they are given up")
    wait(lambda: one.ask("double", 1, 20 * one.interval) == {}, "time passes")
    assert [bus._processes._ticks for bus in buses] == ticks
    before = [bus.gaps for bus in buses]
    for end in wire.ends:
        end.restore()
    one.tell("word", "again")
    wait(lambda: words(two, one)[-1:] == words(three, one)[-1:] == ["again"], "messages arrive again")
    assert [bus.departed for bus in buses] == [[], [], []]
    assert all(bus.gaps > gaps for bus, gaps in zip(buses, before, strict=True))
    # Only one is cut off: it declares nobody dead, and comes back as one that has been away.
    wire.ends[0].up = False
    wait(lambda: [process.id for process in two.departed] == [one.own.id], "it is missed")
    assert not one.departed
    assert one.has_other_nodes
    wire.ends[0].restore()
    know(*buses)
    assert [process.id for process in two.joined][-1] == one.own.id
    assert not one.departed


def test_messages_that_one_node_alone_has_missed_are_noticed(make: Make, wire: Wire) -> None:
    one, two = make(), make()
    know(one, two)
    never_late(one, two)
    before = two.gaps
    wire.ends[1].up = False
    one.tell("word", 1)
    wait(lambda: one._sending.idle, "it is sent")
    wire.ends[1].up = True  # nothing tells that it was away
    one.tell("word", 2)
    wait(lambda: words(two, one) == [2], "the next one arrives")
    assert two.gaps == before + 1


def test_too_much_and_nonsense_is_dropped_and_counted(make: Make, wire: Wire) -> None:
    def dropped(reason: str) -> float:
        return metrics.REGISTRY.get_sample_value("socketio_pg_bus_dropped_total", {"reason": reason}) or 0.0

    one, two = make(), make()
    know(one, two)
    invalid, many = dropped("invalid"), dropped("too_many")
    head = [two.own.to_wire(), 1.0, 0, False, False]
    for nonsense in (
        1,
        [],
        [head],
        [head, [1]],
        [head, [["message"]]],
        [[1, 2, 3, 4, 5], []],
        [head, [["beat", 0, 0, 7]]],
    ):
        wire.ends[0].inject(json.dumps(nonsense))
    wire.ends[0].inject("[" * 100_000)
    wire.ends[0].inject(json.dumps([head, [["new", 1], ["message", 10**6, "unknown", None]]]))  # of a later version
    wait(lambda: dropped("invalid") >= invalid + 8, "all are refused")
    one._sending.max_waiting = 1000
    for number in range(20):
        one.tell("word", f"{number:100}")
    assert dropped("too_many") > many
    gaps = two.gaps
    wait(lambda: two.gaps > gaps, "the other one knows")
    count = len(words(two, one))
    assert 0 < count < 20
    one.tell("word", "next")
    wait(lambda: words(two, one)[count:] == ["next"], "it goes on")


def test_late_texts_bring_nobody_back() -> None:
    joined: list[str] = []
    left: list[str] = []
    processes = Processes(lambda process: joined.append(process.id), lambda process: left.append(process.id))
    a0, a1, a2, b = (Process(f"{id}{n}", id, "host:1", n, 0.0) for id, n in (("a", 0), ("a", 1), ("a", 2), ("b", 0)))
    assert processes.hear(a0, 1.0)
    processes.beat(a0, 1.0, [a0, a1])
    assert processes.hear(a2, 1.5)  # has just started
    processes.beat(a0, 1.6, [a0, a1])  # does not know it yet
    assert joined == ["a0", "a1", "a2"]
    assert not left
    processes.beat(a1, 3.0, [a1, a2])
    assert left == ["a0"]
    processes.beat(a0, 2.0, [a0, a1, a2])  # sent before
    assert not processes.hear(a0, 2.9)
    processes.beat(b, 1.0, [b])  # its clock is its own
    assert [process.id for process in processes.all()] == ["a1", "a2", "b0"]
    for _ in range(Processes.patience):
        assert processes.has_others("b")
        assert processes.hear(a2, 4.0)
        processes.tick("b")
    assert left == ["a0", "a1"]
    processes.beat(a2, 5.0, [])
    assert left == ["a0", "a1", "a2"]
    assert not processes.has_others("b")
