"""tests.support.leftovers reports threads that are still running, with name and position, but not those that end."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from socketio_pg.core import green
from tests.support.leftovers import left_since, running

pytestmark = pytest.mark.green


def test_running_thread_is_reported() -> None:
    before, end = running(), threading.Event()
    thread = threading.Thread(target=end.wait, name="straggler")
    thread.start()
    [left] = left_since(before, 0.1)
    assert "straggler" in left
    assert "in wait" in left
    end.set()
    assert left_since(before) == []


def test_running_green_threads_are_reported() -> None:
    before, end = running(), green.Event()
    green.spawn(end.wait)
    green.run_soon(end.wait)
    green.sleep()  # let them start
    assert [("in wait" in left) for left in left_since(before, 0.1)] == [True, True]
    end.send()
    assert left_since(before) == []


def test_idle_pool_is_not_reported() -> None:
    before, end = running(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(end.wait)
        assert len(left_since(before, 0.1)) == 1
        end.set()
        work.result()
        assert left_since(before) == []


def test_earlier_threads_and_those_of_the_library_are_not_reported() -> None:
    end = green.Event()
    green.spawn(end.wait)
    green.sleep()
    before = running()
    assert green.resolve("localhost")  # in a thread of the library
    assert left_since(before, 0.1) == []
    end.send()
    green.sleep()
