"""Accepted connections and the WSGI server, on the library of the run and on both."""

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from socketio_pg.core import green, progress
from tests.support.libraries import rounds
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.green


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
