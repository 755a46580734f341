"""Green threads, on the library of the run. Tests that need monkey-patching start a process for it."""

import functools
import socket
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest

from socketio_pg.core import green
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.green


def test_timeout_raises_timed_out() -> None:
    with pytest.raises(green.TimedOut, match=r"0\.01 s"), green.timeout(0.01):
        green.sleep(5)
    with green.timeout(5):
        green.sleep(0)


def test_inner_timeout_does_not_end_the_outer_one() -> None:
    with green.timeout(5):
        with pytest.raises(green.TimedOut), green.timeout(0.01):
            green.sleep(5)
        green.sleep(0)


def test_others_run_while_many_calls_begin() -> None:
    begun: list[int] = []
    seen: list[int] = []

    def look() -> None:
        for _ in range(10):
            seen.append(len(begun))
            green.sleep()

    watch = green.spawn(look)
    found = green.run_together([functools.partial(begun.append, number) for number in range(100)])
    watch.wait()
    assert found == [None] * 100
    assert any(0 < number < 100 for number in seen), seen


def test_event_wakes_all_waiters_and_keeps_its_result() -> None:
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


def test_error_in_a_green_thread_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ValueError("lost?")

    green.spawn(fail).wait()
    assert "lost?" in caplog.text


def test_worker_runs_until_it_is_stopped() -> None:
    events: list[object] = []

    def work(name: str, *, pause: float) -> None:
        try:
            while True:
                events.append(name)
                green.sleep(pause)
        finally:
            events.append("ended")

    worker = green.Worker()
    assert not worker.running
    worker.stop()
    worker.start(work, "first", pause=5.0)
    assert worker.running
    worker.start(work, "second", pause=5.0)
    green.sleep()
    assert events == ["first"]
    worker.stop()
    assert events == ["first", "ended"]
    assert not worker.running
    worker.stop()
    worker.start(work, "again", pause=5.0)
    green.sleep()
    worker.stop()
    assert events == ["first", "ended", "again", "ended"]


def test_ended_worker_can_be_started_again(caplog: pytest.LogCaptureFixture) -> None:
    results: list[object] = []

    def work(value: object) -> None:
        results.append(value)
        if value is None:
            raise ValueError("lost?")

    worker = green.Worker()
    for value in (1, None, 2):
        worker.start(work, value)
        assert worker.running
        green.sleep()
        assert not worker.running
    assert results == [1, None, 2]
    assert "lost?" in caplog.text


def test_worker_stopped_before_it_runs_never_runs() -> None:
    results: list[object] = []
    worker = green.Worker()
    worker.start(results.append, "ran")
    worker.stop()
    assert not worker.running
    green.sleep()
    assert results == []


def test_worker_can_stop_itself() -> None:
    results: list[object] = []
    worker = green.Worker()

    def work() -> None:
        try:
            worker.stop()
            results.append("went on")
        finally:
            results.append("ended")

    worker.start(work)
    green.sleep()
    green.sleep()
    assert results == ["ended"]
    assert not worker.running


def test_end_of_a_stopped_worker_does_not_affect_the_next_one() -> None:
    """A stopped worker's ``finally`` may still wait when the next worker starts."""
    worker = green.Worker()
    may_end, ended = green.Event(), green.Event()

    def work() -> None:
        try:
            green.sleep(5)
        finally:
            may_end.wait(5)
            ended.send()

    worker.start(work)
    green.sleep()
    worker.stop()
    worker.start(green.sleep, 5.0)
    may_end.send()
    ended.wait(5)
    green.sleep()
    assert worker.running
    worker.stop()
    assert not worker.running


def test_waker_wakes_select() -> None:
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


def test_many_green_threads_can_wake_with_a_patched_os_module() -> None:
    program = """
        from socketio_pg.core import green
        green.patch()
        waker = green.Waker()
        threads = [green.spawn(waker.wake) for _ in range(10)]
        assert green.select([waker], 5) == [waker]
        waker.clear()
        for thread in threads:
            thread.wait()
        print("woken")
    """
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (ended.stdout, ended.stderr) == ("woken\n", "")


def test_socket_of_a_pair_does_not_wait_in_green_threads_in_a_patched_process() -> None:
    program = """
        from socketio_pg.core import green
        green.patch()
        plain, other = green.socket_pair()
        print(type(plain).__module__, type(other).__module__.partition(".")[0])
    """
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (ended.stdout, ended.stderr) == (f"socket {green.LIBRARY}\n", "")


def test_error_in_a_thread_of_the_system_is_raised_and_not_printed(
    library: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Otherwise each attempt to connect to a host without address would leave a traceback in the log."""
    with pytest.raises(ZeroDivisionError):
        library.call_in_thread(divmod, 1, 0)
    assert capfd.readouterr().err == ""


def test_resolve_returns_addresses() -> None:
    assert set(green.resolve("localhost")) & {"127.0.0.1", "::1"}
    with pytest.raises(OSError, match=r"."):
        green.resolve("no-such-host.invalid")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"not HTTP\r\n\r\n", "not an HTTP response"),
        (b"HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n", "500"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123456789", "larger than 8 bytes"),
        (b"", "Remote end closed connection"),
    ],
)
def test_fetch_of_anything_but_a_small_response_raises_os_error(answer: bytes, problem: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(OSError, match=problem):
            green.fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/", PATIENCE, 8)
        thread.join()
