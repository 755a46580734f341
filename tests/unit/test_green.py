"""Green threads; in a process of its own where monkey-patching matters, as in production."""

import subprocess
import sys
import textwrap

import pytest

from socketio_pg.core import green


def test_timeout() -> None:
    with pytest.raises(green.TimedOut, match=r"0\.01 s"), green.timeout(0.01):
        green.sleep(5)
    with green.timeout(5):
        green.sleep(0)


def test_inner_timeout_is_not_taken_for_the_outer_one() -> None:
    with green.timeout(5):
        with pytest.raises(green.TimedOut), green.timeout(0.01):
            green.sleep(5)
        green.sleep(0)


def test_event_wakes_all_who_wait_and_keeps_its_result() -> None:
    event = green.Event()
    results: list[object] = []
    threads = [green.spawn(lambda: results.append(event.wait(5))) for _ in range(3)]
    green.sleep()
    event.send("first")
    event.send("second")
    for thread in threads:
        thread.wait()
    assert results == ["first"] * 3
    assert event.wait() == "first"
    assert event.is_set()
    with pytest.raises(green.TimedOut):
        green.Event().wait(0.01)


def test_an_error_in_a_green_thread_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ValueError("lost?")

    green.spawn(fail).wait()
    assert "lost?" in caplog.text


def test_waker() -> None:
    waker = green.Waker()
    try:
        assert green.select([waker], 0) == []
        green.spawn(waker.wake)
        assert green.select([waker], 5) == [waker]
        waker.clear()
        assert green.select([waker], 0) == []
        for _ in range(100_000):  # more than a pipe holds
            waker.wake()
        assert green.select([waker], 0) == [waker]
    finally:
        waker.close()


def test_many_green_threads_may_wake_at_once_when_os_is_patched() -> None:
    program = """
        import eventlet
        eventlet.monkey_patch()
        from socketio_pg.core import green
        waker = green.Waker()
        threads = [eventlet.spawn(waker.wake) for _ in range(10)]
        assert green.select([waker], 5) == [waker]
        waker.clear()
        for thread in threads:
            thread.wait()
        print("woken")
    """
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=30
    )
    assert (ended.stdout, ended.stderr) == ("woken\n", "")


def test_resolve() -> None:
    assert set(green.resolve("localhost")) & {"127.0.0.1", "::1"}
    with pytest.raises(OSError, match=r"."):
        green.resolve("no-such-host.invalid")
