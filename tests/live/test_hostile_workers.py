"""Hostile requests on several workers: each byte is read once, by one of them, and each session has one owner."""

import contextlib
import itertools
import json
import os
import signal
import socket
import time
import urllib.parse
from collections.abc import Callable, Iterator

import pytest

from tests.support.invariants import settled, state
from tests.support.patience import until
from tests.support.postgres import Cluster
from tests.support.raw_http import GOOD, WEBSOCKET, Connection, connect_to_session, http, open_session, websocket_path
from tests.support.server import PATIENT, ServerProcess

pytestmark = pytest.mark.green

APP = "tests.support.watched_app:app"
UNKNOWN_SESSION = 1


@contextlib.contextmanager
def _node(cluster: Cluster, workers: int, *options: str, **settings: str) -> Iterator[ServerProcess]:
    """A node that echoes the messages of Engine.IO."""
    settings = {"ECHO": "1", "DRAIN_SECONDS": "0.2", **PATIENT} | settings
    with contextlib.closing(ServerProcess(cluster.url(), "-w", str(workers), *options, app=APP, **settings)) as made:
        until(lambda: len(made.worker_pids()) == workers, "all workers run")
        yield made


@pytest.fixture(scope="module")
def server(newest_pg: Cluster) -> Iterator[ServerProcess]:
    with _node(newest_pg, 2) as made:
        yield made


def _sid(path: str) -> str:
    return urllib.parse.parse_qs(path)["sid"][0]


def _owner(server: ServerProcess, path: str) -> int:
    [pid] = json.loads(server.get(f"/owner?sid={urllib.parse.quote(_sid(path))}")[1])["owners"]
    return int(pid)


def _sessions(server: ServerProcess) -> dict[int, str]:
    """Open sessions until each worker has one. Return one path for each process id; the other sessions are closed."""
    found: dict[int, str] = {}
    pids = set(server.worker_pids())

    def open_another() -> bool:
        path = open_session(server)
        if found.setdefault(_owner(server, path), path) != path:
            _close(server, path)
        return found.keys() == pids

    until(open_another, "each worker has a session")
    return found


def _close(server: ServerProcess, path: str) -> None:
    """Close a session that may be closed already."""
    assert http(server, "POST", path, body=b"1").status in (200, 400)


@pytest.fixture
def pair(server: ServerProcess) -> Iterator[tuple[str, str]]:
    """The paths of two sessions on different workers. At the end nothing more is left than there was before."""
    base = state(server)
    first, second = _sessions(server).values()
    yield first, second
    for path in (first, second):
        _close(server, path)
    settled(server, base)


def _request(method: str, path: str, body: bytes | None = None, headers: str = "") -> bytes:
    length = "" if body is None else f"Content-Length: {len(body)}\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: a\r\n{length}{headers}\r\n".encode() + (body or b"")


# -- ids of sessions ---------------------------------------------------------------------------------------------------


FORGED: dict[str, Callable[[str], str]] = {
    "truncated": lambda sid: sid[:-1],
    "without the worker": lambda sid: sid[:20],
    "one byte": lambda sid: sid[:1],
    "empty": lambda sid: "",
    "longer": lambda sid: sid + "AAAA",
    "another worker's": lambda sid: sid[:-4] + ("AAAA" if sid[-4:] != "AAAA" else "BBBB"),
    "very long": lambda sid: sid + "A" * 3_900,
    "not base64": lambda sid: "%FF%00%0D%0A" + sid[4:],
    "standard base64": lambda sid: sid[:-2] + "%2B/",
    "a path": lambda sid: "../../" + sid,
    "twice": lambda sid: f"x&sid={sid}",
    "upper case": lambda sid: sid.swapcase(),
}


def test_forged_session_id_is_unknown(server: ServerProcess, pair: tuple[str, str]) -> None:
    for path, kind in itertools.product(pair, FORGED):
        forged = path.replace(_sid(path), FORGED[kind](_sid(path)))
        for method, target in (("GET", forged), ("POST", forged), ("GET", websocket_path(forged))):
            reply = http(server, method, target, body=b"4x" if method == "POST" else None)
            assert (reply.status, reply.json["code"]) == (400, UNKNOWN_SESSION), kind
        # The session is as it was.
        assert http(server, "POST", path, body=b"4still").body == b"ok"
        assert http(server, path=path).body == b"4still"


@pytest.mark.parametrize("encode", [lambda sid: "".join(f"%{ord(one):02x}" for one in sid), lambda sid: f"{sid}&sid=x"])
def test_spelling_of_a_session_id_does_not_matter(
    server: ServerProcess, pair: tuple[str, str], encode: Callable[[str], str]
) -> None:
    for path in pair:
        for _ in range(4):
            spelled = path.replace(_sid(path), encode(_sid(path)))
            assert http(server, "POST", spelled, body=b"4x").body == b"ok"
            assert http(server, path=spelled).body == b"4x"


def test_sessions_of_a_worker_that_is_gone_are_unknown_at_once(newest_pg: Cluster) -> None:
    with _node(newest_pg, 2) as server:
        sessions = _sessions(server)
        gone, path = next(iter(sessions.items()))
        with connect_to_session(server, path) as polling:
            polling.request("GET", path)
            os.kill(gone, signal.SIGKILL)
            assert polling.closed()
        until(lambda: gone not in server.worker_pids(), "gunicorn notices the end of its worker")
        for target in (path, websocket_path(path)):
            # More often than once: the successor in its slot may answer, or the other worker.
            for _ in range(5):
                began = time.monotonic()
                reply = http(server, path=target)
                assert (reply.status, reply.json["code"]) == (400, UNKNOWN_SESSION)
                assert time.monotonic() - began < 10, "only a busy machine takes longer than an instant"
        [left] = sessions.keys() - {gone}
        assert http(server, "POST", sessions[left], body=b"4x").body == b"ok"


def test_session_is_known_to_a_worker_that_has_just_started(newest_pg: Cluster) -> None:
    """It accepted requests before the others had told it who they are, and answered that the session is unknown."""
    with _node(newest_pg, 2, "--timeout", "300") as server:
        (stopped, path), (gone, _) = _sessions(server).items()
        os.kill(stopped, signal.SIGSTOP)
        try:
            os.kill(gone, signal.SIGKILL)
            with Connection(server) as one, Connection(server) as other:
                one.request("GET", "/healthz")
                assert one.reply().status == 200, "the successor serves"
                one.request("POST", path, body=b"4x")
                other.request("GET", "/healthz")
                assert other.reply().status == 200, "the successor has got both requests"
                os.kill(stopped, signal.SIGCONT)
                assert one.reply().body == b"ok"
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert http(server, path=path).body == b"4x"


# -- connections that move ---------------------------------------------------------------------------------------------


def test_keep_alive_connection_carries_sessions_of_different_workers(
    server: ServerProcess, pair: tuple[str, str]
) -> None:
    """As a proxy's connection does, with other requests in between."""
    with Connection(server) as one:
        for round in range(20):
            for path in pair:
                text = f"4{round}".encode()
                one.request("POST", path, body=text)
                assert one.reply().body == b"ok"
                one.request("GET", "/healthz")
                assert one.reply().status == 200
                one.request("OPTIONS", path)
                assert one.reply().status == 200
                one.request("HEAD", "/healthz")
                assert one.reply(body=False).status == 200
                one.request("GET", path)
                assert one.reply().body == text
                one.request("PUT", path, body=b"4no")
                assert one.reply().status == 400


def test_pipelined_requests_of_different_workers(server: ServerProcess, pair: tuple[str, str]) -> None:
    """They are answered in their order, whichever worker has read them."""
    rounds = 30
    with Connection(server) as one:
        one.send(
            b"".join(
                _request("POST", path, f"4{number}".encode()) + _request("GET", "/healthz") + _request("GET", path)
                for number in range(rounds)
                for path in pair
            )
        )
        for number in range(rounds):
            for _ in pair:
                assert one.reply().body == b"ok"
                assert one.reply().status == 200
                assert one.reply().body == f"4{number}".encode()
        one.send(_request("GET", "/healthz", headers="Connection: close\r\n"))
        assert one.reply().status == 200
        assert one.closed()
        assert one.rest == b""


CHUNKED = "Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_request_that_arrives_in_pieces(server: ServerProcess, pair: tuple[str, str], chunked: bool) -> None:
    """The head, and the body while the connection moves."""
    for path, step in itertools.product(pair * 2, (1, 7, 50)):
        text = "4" + "é" * 40
        data = text.encode()
        if chunked:
            body = (
                b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (data[:3], data[3:30], data[30:]))
                + b"0\r\n\r\n"
            )
            whole = _request("POST", path, headers=CHUNKED) + body
        else:
            whole = _request("POST", path, data)
        with Connection(server) as one:
            one.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for start in range(0, len(whole), step):
                one.send(whole[start : start + step])
            assert one.reply().body == b"ok"
        assert http(server, path=path).body == data


def test_large_body_follows_its_connection(server: ServerProcess, pair: tuple[str, str]) -> None:
    """More than gunicorn reads at once, most of it in the kernel when the connection moves."""
    for path in pair * 2:
        with Connection(server) as one:
            one.request("POST", path, body=b"4" + b"x" * 900_000)
            assert one.reply().body == b"ok"
        assert len(http(server, path=path).body) == 900_001


def test_expect_100_continue(server: ServerProcess, pair: tuple[str, str]) -> None:
    for path in pair * 2:
        with Connection(server) as one:
            one.request("POST", path, {"Content-Length": "6", "Expect": "100-continue"})
            assert one.reply().status == 100
            one.send(b"4hello")
            assert one.reply().body == b"ok"
            one.request("GET", path)
            assert one.reply().body == b"4hello"


# -- smuggling ---------------------------------------------------------------------------------------------------------


def _smuggled(victim: str) -> bytes:
    return _request("POST", victim, b"4stolen")


SMUGGLING: dict[str, Callable[[str, str], bytes]] = {
    "length and chunks": lambda path, victim: (
        _request("POST", path, headers=f"Content-Length: 5\r\n{CHUNKED}") + b"0\r\n\r\n" + _smuggled(victim)
    ),
    "two lengths": lambda path, victim: (
        _request("POST", path, headers=f"Content-Length: 2\r\nContent-Length: {2 + len(_smuggled(victim))}\r\n")
        + b"4x" + _smuggled(victim)
    ),
    "hidden chunks": lambda path, victim: (
        _request("POST", path, headers="Content-Length: 5\r\nTransfer-Encoding : chunked\r\n")
        + b"0\r\n\r\n" + _smuggled(victim)
    ),
    "unknown coding": lambda path, victim: (
        _request("POST", path, headers="Transfer-Encoding: xchunked\r\n") + b"0\r\n\r\n" + _smuggled(victim)
    ),
    "folded header": lambda path, victim: (
        _request("POST", path, headers="X: y\r\n Transfer-Encoding: chunked\r\nContent-Length: 0\r\n")
        + _smuggled(victim)
    ),
    "length with a sign": lambda path, victim: (
        _request("POST", path, headers=f"Content-Length: +{len(_smuggled(victim))}\r\n") + _smuggled(victim)
    ),
    "header of the PROXY protocol": lambda path, victim: (
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + _request("POST", path, b"4x") + _smuggled(victim)
    ),
    "bare line feed": lambda path, victim: (
        _request("POST", path, headers="X: y\nContent-Length: 0\r\n") + _smuggled(victim)
    ),
}  # fmt: skip


def test_ambiguous_request_is_refused_with_all_that_follows(server: ServerProcess, pair: tuple[str, str]) -> None:
    """The worker that passes a request and the one that serves it agree about where it ends."""
    for (path, victim), kind in itertools.product((pair, pair[::-1]), SMUGGLING):
        for first in (b"", _request("GET", "/healthz"), _request("OPTIONS", victim)):
            with Connection(server) as one:
                one.send(first + SMUGGLING[kind](path, victim))
                if first:
                    assert one.reply().status == 200
                assert one.reply().status >= 400, kind
                assert one.closed()
                assert one.rest == b"", f"{kind}: nothing of the rest was a request"
    for path in pair:
        assert http(server, "POST", path, body=b"4honest").body == b"ok"
        assert http(server, path=path).body == b"4honest"


def test_body_with_requests_is_one_message(server: ServerProcess, pair: tuple[str, str]) -> None:
    """A body that looks like requests of the other worker's session, and one that nobody reads."""
    for path, victim in (pair, pair[::-1]):
        body = b"4" + _smuggled(victim) * 3
        with Connection(server) as one:
            for _ in range(3):
                one.request("POST", path, body=body)
                assert one.reply().body == b"ok"
                one.request("POST", "/healthz", body=_smuggled(victim))
                assert one.reply().status == 405
                one.request("OPTIONS", victim, body=_smuggled(path))
                assert one.reply().status == 200
                one.request("GET", path)
                assert one.reply().body == body
        for one_path in pair:
            assert http(server, "POST", one_path, body=b"4honest").body == b"ok"
            assert http(server, path=one_path).body == b"4honest"


def test_clients_that_leave_while_their_connection_moves(server: ServerProcess, pair: tuple[str, str]) -> None:
    for path in pair:
        for end in range(1, 4):
            for _ in range(20):
                whole = _request("POST", path, b"4x", headers="Expect: 100-continue\r\n" if end == 3 else "")
                with Connection(server) as one:
                    one.send(whole[:-end])
    for path in pair:
        assert http(server, "POST", path, body=b"4honest").status in (200, 400)


def test_handshakes_of_clients_that_have_left_leave_nothing(server: ServerProcess) -> None:
    base = state(server)
    headers = "".join(f"{name}: {value}\r\n" for name, value in GOOD.items())
    for _ in range(100):
        with Connection(server) as one:
            one.send(_request("GET", WEBSOCKET, headers=headers))
    settled(server, base)
