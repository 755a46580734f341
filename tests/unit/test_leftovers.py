"""tests.support.leftovers: what is still running is found, with its name and its place; what ends in time is not."""

import threading
from concurrent.futures import ThreadPoolExecutor

import eventlet

from socketio_pg.core import green
from tests.support.leftovers import left_since, running


def test_a_thread_that_goes_on() -> None:
    before, end = running(), threading.Event()
    thread = threading.Thread(target=end.wait, name="straggler")
    thread.start()
    [left] = left_since(before, 0.1)
    assert "straggler" in left
    assert "in wait" in left
    end.set()
    assert left_since(before) == []


def test_green_threads_that_go_on() -> None:
    before, end = running(), green.Event()
    green.spawn(end.wait)
    green.run_soon(end.wait)
    eventlet.sleep()  # until they have begun: a look around can take longer than it waits
    assert [("in wait" in left) for left in left_since(before, 0.1)] == [True, True]
    end.send()
    assert left_since(before) == []


def test_a_pool_without_work_does_nothing() -> None:
    before, end = running(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(end.wait)
        assert len(left_since(before, 0.1)) == 1
        end.set()
        work.result()
        assert left_since(before) == []


def test_what_was_there_before_and_what_eventlet_keeps() -> None:
    end = green.Event()
    green.spawn(end.wait)
    eventlet.sleep()
    before = running()
    assert eventlet.tpool.execute(str, 1) == "1"
    assert left_since(before, 0.1) == []
    end.send()
    eventlet.sleep()
