"""Green threads. Tests that need monkey-patching, as in production, run in a separate process.

Most tests use the library of the whole run. Those with the fixture ``library`` use the module of each library directly:
one thread may have the event loops of both, as long as no green thread of one waits for one of the other.
"""

import ast
import contextlib
import contextvars
import fcntl
import functools
import inspect
import os
import socket
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from socketio_pg.core import green, green_eventlet, green_gevent, progress, wsgi_eventlet, wsgi_gevent
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.green

#: The two modules of each library, as one.
BOTH = tuple(
    SimpleNamespace(**(vars(threads) | vars(connections)))
    for threads, connections in ((green_eventlet, wsgi_eventlet), (green_gevent, wsgi_gevent))
)


@pytest.fixture(params=BOTH, ids=lambda module: module.NAME)
def library(request: pytest.FixtureRequest) -> Any:
    """The module of each library, also of the one that this run does not use."""
    return request.param


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


def test_client_that_reads_too_slowly_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read is progress, so that only the average shows it."""
    monkeypatch.setattr(progress, "STALLED", 1.0)
    for speed, survives in ((10**9, False), (1.0, True)):
        monkeypatch.setattr(progress, "MIN_SPEED", speed)
        plain, connection = green.socket_pair()
        connection = green.client_socket(connection)
        read = 0

        def read_slowly(plain: Any = plain) -> None:
            nonlocal read
            while read < 3_000_000:
                green.sleep(0.05)
                with contextlib.suppress(BlockingIOError):
                    read += len(plain.recv(100_000))

        reader = green.spawn(read_slowly)
        if survives:
            connection.sendall(b"x" * 3_000_000)
            reader.wait()
        else:
            with pytest.raises(ConnectionResetError):
                connection.sendall(b"x" * 3_000_000)
            assert 0 < read < 3_000_000
            reader.kill()
        plain.close()
        connection.close()


# -- both libraries ----------------------------------------------------------------------------------------------------


def public(module: ModuleType) -> set[str]:
    """Return the names that ``module`` defines, without those that it imports."""
    assert module.__file__ is not None
    names: set[str] = set()
    for node in ast.parse(Path(module.__file__).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def signatures(module: ModuleType) -> dict[str, str]:
    """Return the signatures of the functions that ``module`` defines, and of the methods of `Readiness`."""
    functions = {name: value for name in public(module) if inspect.isfunction(value := getattr(module, name))}
    methods: dict[str, Any] = {}
    if "Readiness" in public(module):
        methods = {
            name: value for name, value in vars(module.Readiness).items() if name[0] != "_" or name == "__init__"
        }
    return {
        name: str(inspect.signature(value)).replace(f"{module.__name__}.", "")
        for name, value in (functions | methods).items()
        if callable(value)
    }


def test_both_libraries_have_the_same_names() -> None:
    assert public(green_eventlet) == public(green_gevent) - {"READ", "WRITE"}
    assert signatures(green_eventlet) == signatures(green_gevent)
    assert public(wsgi_eventlet) == public(wsgi_gevent)
    assert signatures(wsgi_eventlet) == signatures(wsgi_gevent)
    assert set(vars(green_eventlet.Result())) - {"_event"} == set(vars(green_gevent.Result())) - {"_result"}
    assert {module.NAME for module in BOTH} == {"eventlet", "gevent"}
    assert green.LIBRARY in {module.NAME for module in BOTH}


def test_interface_has_the_names_of_the_library() -> None:
    """`green` offers them as they are, wraps them, or uses them. Only the modules themselves use two of them."""
    source = inspect.getsource(green)
    own = {"logger", "ClientSocket"}
    assert [name for name in public(green_eventlet) - own if f"_library.{name}" not in source] == []
    assert [name for name in public(wsgi_eventlet) - own if f"_wsgi.{name}" not in source] == []


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The descriptors of a non-blocking pipe: the one to read from, and the one to write to."""
    ends = os.pipe2(os.O_NONBLOCK)
    yield ends
    for end in ends:
        os.close(end)


def test_green_threads_have_no_context_variables(library: Any) -> None:
    """Those of a request of Flask would live as long as the thread."""
    request = contextvars.ContextVar("request", default="none")
    seen: list[str] = []

    def look() -> None:
        seen.append(request.get())

    token = request.set("mine")
    library.spawn_raw(look)
    library.spawn(look).wait()
    rounds(library)
    request.reset(token)
    assert seen == ["none", "none"]


def test_all_ready_green_threads_run_while_one_sleeps(library: Any) -> None:
    """However long that takes: gevent looks at descriptors and timers in between."""
    ran: list[int] = []

    def work(number: int) -> None:
        sum(range(1000))
        ran.append(number)

    for number in range(3000):
        library.spawn_raw(work, number)
    library.sleep()
    assert ran == list(range(3000))


def test_select_takes_high_descriptors(library: Any, pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    with os.fdopen(fcntl.fcntl(reading, fcntl.F_DUPFD, 1100), "rb") as high:
        assert high.fileno() > 1023
        assert library.select([high], 0) == []
        os.write(writing, b"x")
        assert library.select([high], PATIENCE) == [high]


def test_sleep_lets_callbacks_of_descriptors_run(library: Any, pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    called: list[int] = []
    readiness = library.Readiness(reading)
    readiness.start_reading(lambda *_: called.append(reading))
    os.write(writing, b"x")
    rounds(library, 2)  # eventlet does not always look at the descriptors before it continues the first time
    readiness.close()
    assert called


def test_readiness_calls_until_it_is_stopped(library: Any, pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    called = 0

    def read(*_: object) -> None:
        nonlocal called
        called += 1
        os.read(reading, 1)

    readiness = library.Readiness(reading)
    readiness.start_reading(read)
    rounds(library)
    assert called == 0
    os.write(writing, b"xx")
    rounds(library)
    assert called == 2
    readiness.stop_reading()
    readiness.stop_reading()
    readiness.stop_writing()
    os.write(writing, b"x")
    rounds(library)
    assert called == 2
    readiness.start_reading(read)
    rounds(library)
    assert called == 3
    readiness.close()
    readiness.stop_reading()
    os.write(writing, b"x")
    rounds(library)
    assert called == 3


def rounds(library: Any, count: int = 5) -> None:
    """Let the hub look at the descriptors some times."""
    for _ in range(count):
        library.sleep()


def test_one_readiness_reads_and_writes(library: Any) -> None:
    plain, other = library.socket_pair()
    events: list[str] = []
    readiness = library.Readiness(plain.fileno())

    def write(*_: object) -> None:
        events.append("write")
        readiness.stop_writing()

    def read(*_: object) -> None:
        events.append(plain.recv(100).decode())

    readiness.start_reading(read)
    readiness.start_writing(write)
    rounds(library)
    assert events == ["write"]
    other.sendall(b"one")
    rounds(library)
    readiness.start_writing(write)
    rounds(library)
    assert events == ["write", "one", "write"]
    readiness.close()
    plain.close()
    other.close()


def test_closed_readiness_calls_nothing_more(library: Any, pipe: tuple[int, int]) -> None:
    """Also when its own callback closes it, and when the descriptor's number is used again."""
    reading, writing = pipe
    os.write(writing, b"x")
    called: list[str] = []
    first = library.Readiness(reading)

    def close(*_: object) -> None:
        called.append("first")
        first.close()

    first.start_reading(close)
    rounds(library)
    assert called == ["first"]
    second = library.Readiness(reading)
    second.start_reading(lambda *_: called.append("second"))
    library.sleep()
    second.close()
    assert set(called[1:]) == {"second"}
    calls = len(called)
    rounds(library)
    assert len(called) == calls


def test_descriptor_of_a_closed_connection_can_be_used_again(library: Any) -> None:
    """As by the next client: the kernel gives out the lowest free number."""
    numbers: set[int] = set()
    for turn in range(3):
        plain, other = library.socket_pair()
        numbers.add(plain.fileno())
        received: list[bytes] = []
        readiness = library.Readiness(plain.fileno())
        readiness.start_reading(lambda *_, plain=plain, received=received: received.append(plain.recv(100)))
        rounds(library)
        other.sendall(b"%d" % turn)
        rounds(library)
        assert received == [b"%d" % turn]
        readiness.close()
        plain.close()
        other.close()
    assert len(numbers) == 1


@pytest.fixture
def connected(library: Any) -> Iterator[tuple[Any, Any]]:
    """A TCP connection: the plain socket of the client, and the green one that the server has accepted."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    number = accepted.detach()
    # As the server gets it from the library.
    green_socket = library.socket_pair()[1].__class__
    connection = (
        green_socket(library.plain_socket.socket(fileno=number))
        if library.NAME == "eventlet"
        else green_socket(fileno=number)
    )
    yield client, connection
    client.close()
    connection.close()


def test_taken_over_connection_outlives_the_request(library: Any, connected: tuple[Any, Any]) -> None:
    client, connection = connected
    taken = library.take_over(connection)
    connection.close()
    with pytest.raises(BlockingIOError):
        taken.recv(1)
    taken.send(b"from the server")
    client.settimeout(PATIENCE)
    assert client.recv(100) == b"from the server"
    client.sendall(b"x")
    while_readable: list[bytes] = []
    readiness = library.Readiness(taken.fileno())
    readiness.start_reading(lambda *_: while_readable.append(taken.recv(100)))
    wait_for(library, lambda: bool(while_readable))
    assert while_readable == [b"x"]
    readiness.close()
    taken.close()
    assert client.recv(100) == b"", "nothing else holds the connection open"


def wait_for(library: Any, condition: Callable[[], bool]) -> None:
    """Wait with the green threads of ``library``."""
    timer = library.start_timeout(PATIENCE)
    try:
        while not condition():
            library.sleep()
    finally:
        timer.cancel()


@pytest.mark.parametrize("end", ["close", "reset"])
def test_end_of_a_connection_is_noticed(library: Any, connected: tuple[Any, Any], end: str) -> None:
    client, connection = connected
    ended: list[str] = []
    with library.noticing_end(connection, lambda: ended.append(end)):
        rounds(library)
        assert ended == []
        if end == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        wait_for(library, lambda: bool(ended))
        rounds(library)
    assert ended == [end]


def test_bytes_and_an_end_after_the_body_are_no_end(library: Any, connected: tuple[Any, Any]) -> None:
    client, connection = connected
    ended: list[str] = []
    with library.noticing_end(connection, lambda: ended.append("first")):
        client.sendall(b"GET")
        rounds(library)
    assert ended == []
    assert connection.recv(3) == b"GET"
    with library.noticing_end(connection, lambda: ended.append("second")):
        rounds(library)
    client.close()
    rounds(library)
    assert ended == []
