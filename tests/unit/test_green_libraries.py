"""The modules of both libraries: the same names, and green threads that behave the same.

One thread may have the event loops of both, as long as no green thread of one waits for one of the other.
"""

import ast
import contextvars
import fcntl
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from socketio_pg.core import green, green_eventlet, green_gevent, wsgi_eventlet, wsgi_gevent
from tests.support.libraries import rounds
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.green


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
    assert (green_eventlet.NAME, green_gevent.NAME) == ("eventlet", "gevent")
    assert green.LIBRARY in (green_eventlet.NAME, green_gevent.NAME)


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
