"""Where the head of a request ends."""

import pytest

from socketio_pg.engine.head import MAX_HEAD_BYTES, MAX_LINE_BYTES, end_of_head, proxy_length

LINE = b"GET /a?b HTTP/1.1\r\n"
V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x02ab"


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (LINE + b"Host: a\r\n\r\nbody", 30), (LINE + b"\r\nbody", 21), (LINE, None), (LINE + b"Host: a\r\n", None),
        (LINE[:-1], None), (b"G", None), (b"GET /" + b"a" * MAX_LINE_BYTES, -1), (b"\x16\x03", -1), (b"\r\n", -1),
        (b"get / HTTP/1.1\r\n", -1), (b"GET http://[ HTTP/1.1\r\n", -1), (b"GET / HTTP/2.0\r\n", -1),
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
