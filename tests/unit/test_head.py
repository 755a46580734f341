"""Where the head of a request ends, and which handshakes are plain: gunicorn sees those in the same way."""

import functools
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.http import RequestParser, wsgi
from hypothesis import given, settings
from hypothesis import strategies as st

from socketio_pg.engine import head
from socketio_pg.engine.front import Front
from socketio_pg.engine.head import MAX_HEAD_BYTES, MAX_LINE_BYTES, end_of_head, plain_handshake, proxy_length

LINE = b"GET /a?b HTTP/1.1\r\n"
V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x02ab"


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (LINE + b"Host: a\r\n\r\nbody", 30), (LINE + b"\r\nbody", 21), (LINE, None), (LINE + b"Host: a\r\n", None),
        (LINE[:-1], None), (b"G", None), (b"GET /" + b"a" * MAX_LINE_BYTES, -1), (b"\x16\x03", -1), (b"\r\n", -1),
        (b"get / HTTP/1.1\r\n", -1), (b"GET http://[ HTTP/1.1\r\n", -1),
        (b"GET http://a.b:1/c HTTP/1.1\r\n", None), (b"GET / HTTP/2.0\r\n", -1),
        (b"GET  / HTTP/1.1\r\n", -1), (b"GET /\xff HTTP/1.1\r\n", -1),
        (LINE + b"a" * (MAX_HEAD_BYTES + MAX_LINE_BYTES), -1),
    ],
)  # fmt: skip
def test_end_of_the_head(data: bytes, end: int | None) -> None:
    assert end_of_head(data) == end
    assert end_of_head(V2 + data, len(V2)) == (end + len(V2) if end is not None and end > 0 else end)


@pytest.mark.parametrize("header", [b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", b"PROXY UNKNOWN\r\n", V2])
def test_header_of_the_proxy_protocol(header: bytes) -> None:
    assert proxy_length(header + LINE) == len(header)
    assert all(proxy_length(header[:size]) is None for size in range(len(header)))


@pytest.mark.parametrize("data", [LINE, b"PROXY" + LINE, b"PROXY " + b"a" * 200, b"\r\n\r\n\0\r\nQUIX\n", b"x"])
def test_no_header_of_the_proxy_protocol(data: bytes) -> None:
    assert proxy_length(data) == 0


# -- plain handshakes --------------------------------------------------------------------------------------------------

HANDSHAKE = (
    b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: example.com:8000\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
LISTENER, ADDRESS = ("0.0.0.0", 8000), ("192.0.2.1", 5000)


class _Worker:
    """gunicorn's worker as far as :class:`Front` uses it before a connection."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.log = Logger(cfg)
        self.wsgi = None


def _gunicorns_environ(data: bytes, cfg: Config, listener: Any, address: Any) -> dict[str, Any]:
    parser = RequestParser(cfg, iter([data]), address)
    request = next(parser)
    _, environ = wsgi.create(request, None, address, listener, cfg)
    assert request.body.read() == b""
    assert not parser.unreader.buf.getvalue(), "nothing is left of the head"
    return {name: value for name, value in environ.items() if isinstance(value, str)}


def _our_environ(data: bytes, cfg: Config, listener: Any, address: Any) -> dict[str, Any] | None:
    worker: Any = _Worker(cfg)
    environ: dict[str, Any] | None = plain_handshake(data, "/socket.io/")
    if environ is None or not Front(worker).complete(environ, listener, address):
        return None
    return {name: value for name, value in environ.items() if isinstance(value, str)}


@functools.cache
def _config(trusted: str) -> Config:
    cfg = Config()
    cfg.set("forwarded_allow_ips", trusted)
    return cfg


def _compare(data: bytes, listener: Any = LISTENER, address: Any = ADDRESS, trusted: str = "127.0.0.1,::1") -> bool:
    """Return whether the head is a plain handshake. If it is, gunicorn's environ is the same."""
    cfg = _config(trusted)
    ours = _our_environ(data, cfg, listener, address)
    if ours is not None:
        assert ours == _gunicorns_environ(data, cfg, listener, address)
    return ours is not None


_PATHS = st.sampled_from([b"/socket.io/", b"/socket.io", b"/socket.io//", b"/socket.io/./", b"//socket.io/", b"/a/"])
_QUERIES = st.sampled_from(
    [
        b"EIO=4&transport=websocket", b"transport=websocket&EIO=4&t=Ab.-_~", b"EIO=4&transport=websocket&sid=a",
        b"EIO=4&EIO=4&transport=websocket", b"EIO=3&transport=websocket", b"EIO=4&transport=polling", b"", b"EIO=4&",
        b"EIO=4&transport=websocket&a=", b"EIO=4&transport=websocket&a", b"EIO=4&transport=websocket&a=b=c",
        b"EIO=%34&transport=websocket", b"EIO=4&transport=websocket#x", b"EIO=4;transport=websocket&x=1",
    ]
)  # fmt: skip
_NAMES = st.sampled_from(
    [
        b"Host", b"host", b"Origin", b"Cookie", b"Authorization", b"X-Forwarded-For", b"X-Forwarded-Proto", b"Expect",
        b"X-Forwarded-Ssl", b"X-Forwarded-Protocol", b"Content-Length", b"Content-Type", b"Transfer-Encoding",
        b"Script-Name", b"SCRIPT_NAME", b"X_Y", b"Connection", b"Sec-WebSocket-Key", b"a b", b"", b" Host", b"X\xe9",
    ]
) | st.binary(max_size=6)  # fmt: skip
_VALUES = st.sampled_from(
    [
        b"example.com", b"example.com:81", b"[::1]:81", b"https", b"http", b"on", b"ssl", b"0", b"5", b"chunked",
        b"", b" ", b" a b\t", b"\xe9", b"a\x00b", b"a\rb", b"a\nb", b"websocket, h2c", b"100-continue",
    ]
) | st.binary(max_size=12)  # fmt: skip
_LISTENERS = st.sampled_from([LISTENER, ("::", 80, 0, 0), "/run/server.sock", "/run/a:b", b"\0abstract"])
_ADDRESSES = st.sampled_from([ADDRESS, ("127.0.0.1", 1), ("::1", 5, 0, 0), "", b""])


@settings(deadline=None, max_examples=600)
@given(
    method=st.sampled_from([b"GET", b"GET", b"GET", b"get", b"POST"]), path=_PATHS, query=_QUERIES,
    version=st.sampled_from([b"1.1", b"1.1", b"1.0", b"2.0"]), separator=st.sampled_from([b": ", b":", b" : ", b":\t"]),
    headers=st.lists(st.tuples(_NAMES, _VALUES), max_size=4), end=st.sampled_from([b"\r\n", b"\n", b"", b"\r\nx"]),
    listener=_LISTENERS, address=_ADDRESSES, allowed=st.sampled_from(["127.0.0.1,::1", "*", "192.0.2.0/24"]),
)  # fmt: skip
def test_gunicorn_sees_a_plain_handshake_in_the_same_way(
    method: bytes, path: bytes, query: bytes, version: bytes, separator: bytes, headers: list[tuple[bytes, bytes]],
    end: bytes, listener: Any, address: Any, allowed: str,
) -> None:  # fmt: skip
    lines = b"".join(name + separator + value + b"\r\n" for name, value in headers)
    line = method + b" " + path + b"?" + query + b" HTTP/" + version + b"\r\n"
    _compare(line + lines + end, listener, address, allowed)


@settings(deadline=None, max_examples=300)
@given(headers=st.lists(st.tuples(st.sampled_from([b"A", b"B-c", b"Origin", b"X-Forwarded-Proto", b"Host"]), _VALUES)),
       listener=_LISTENERS, address=_ADDRESSES)  # fmt: skip
def test_gunicorn_sees_further_headers_in_the_same_way(
    headers: list[tuple[bytes, bytes]], listener: Any, address: Any
) -> None:
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    _compare(HANDSHAKE + lines + b"\r\n", listener, address)


@pytest.mark.parametrize(
    "further",
    [
        b"", b"Origin: http://a\r\n", b"X-Forwarded-Proto: https\r\n", b"x-forwarded-for: 192.0.2.9\r\n",
        b"Cookie: a=b; c=d\r\n", b"Empty:\r\n", b"Sec-WebSocket-Protocol: a, b\r\n", b"A: " + b"x" * 5000 + b"\r\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("listener", [LISTENER, ("::", 80, 0, 0), "/run/server.sock"])
@pytest.mark.parametrize("address", [ADDRESS, ("127.0.0.1", 1), ""])
def test_usual_handshakes_are_plain(further: bytes, listener: Any, address: Any) -> None:
    assert _compare(HANDSHAKE + further + b"\r\n", listener, address)
    assert _compare(HANDSHAKE.replace(b"/?", b"?") + further + b"\r\n", listener, address)


@pytest.mark.parametrize(
    "head",
    [
        HANDSHAKE, HANDSHAKE + b"\r\nx", HANDSHAKE + b"Host: a\r\n\r\n", HANDSHAKE + b"host: a\r\n\r\n",
        HANDSHAKE + b"Expect: 100-continue\r\n\r\n", HANDSHAKE + b"Content-Length: 0\r\n\r\n",
        HANDSHAKE + b"A_B: c\r\n\r\n", HANDSHAKE + b"A: \xe9\r\n\r\n", HANDSHAKE + b"A : b\r\n\r\n",
        HANDSHAKE + b"A: b\r\n c\r\n\r\n", HANDSHAKE + b"A: " + b"x" * 8000 + b"\r\n\r\n",
        HANDSHAKE + b"".join(b"A%d: b\r\n" % number for number in range(50)) + b"\r\n",
        HANDSHAKE.replace(b"1.1", b"1.0") + b"\r\n", HANDSHAKE.replace(b"GET", b"POST") + b"\r\n",
        HANDSHAKE.replace(b"?", b"?sid=a&") + b"\r\n", HANDSHAKE.replace(b"?", b"?j=0&") + b"\r\n",
        HANDSHAKE.replace(b"?", b"?a=" + b"b" * 3000 + b"&") + b"\r\n", HANDSHAKE.replace(b"=websocket", b"=polling"),
        HANDSHAKE.replace(b"/socket.io", b"/other") + b"\r\n",
    ],
)  # fmt: skip
def test_unusual_handshakes_are_left_to_gunicorn(head: bytes) -> None:
    assert plain_handshake(head, "/socket.io/") is None


@pytest.mark.parametrize("listener", ["/run/a:b", b"\0abstract"])
def test_unusual_sockets_are_left_to_gunicorn(listener: Any) -> None:
    assert not _compare(HANDSHAKE + b"\r\n", listener, "")


def test_contradicting_schemes_are_left_to_gunicorn() -> None:
    head = HANDSHAKE + b"X-Forwarded-Proto: https\r\nX-Forwarded-Ssl: on\r\n\r\n"
    assert _compare(head, address=("192.0.2.1", 1)), "the proxy is not trusted, and its headers are not looked at"
    assert not _compare(head, address=("127.0.0.1", 1))


def test_memory_of_header_names_is_bounded() -> None:
    for number in range(head._MAX_KEYS + 100):
        assert plain_handshake(HANDSHAKE + b"N%d: b\r\n\r\n" % number, "/socket.io/") is not None
    assert len(head._keys) <= head._MAX_KEYS
