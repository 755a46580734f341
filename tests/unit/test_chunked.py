"""Chunked bodies: every valid form is read, and nothing after it; everything else is an error within bounds."""

import io
import re

import pytest
from gunicorn.http.unreader import IterUnreader
from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.engine import chunked
from socketio_pg.engine.chunked import ChunkError, Source, TooLargeError, read_chunked
from socketio_pg.engine.handover import UnreadBytes

#: What follows a body on the connection.
NEXT = b"GET / HTTP/1.1\r\n\r\n"

extensions = st.sampled_from([b"", b";a", b" ;a=b", b';a="\t;"', b";\xff"])
trailers = st.sampled_from([b"", b"X: 1\r\n", b"X: 1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n"])
sizes = st.sampled_from([b"%x", b"%X", b"%08x"])


def encoded(parts: list[tuple[bytes, bytes, bytes]], trailer: bytes) -> bytes:
    chunks = [size % len(data) + extension + b"\r\n" + data + b"\r\n" for data, size, extension in parts]
    return b"".join(chunks) + b"0\r\n" + trailer + b"\r\n"


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=40), sizes, extensions), max_size=5),
    trailers,
    st.lists(st.integers(1, 20), min_size=1),
)
def test_valid_bodies_are_read_to_their_end_and_no_further(
    parts: list[tuple[bytes, bytes, bytes]], trailer: bytes, pieces: list[int]
) -> None:
    data, wanted = encoded(parts, trailer) + NEXT, b"".join(part[0] for part in parts)
    file = io.BytesIO(data)  # as on eventlet's server
    assert read_chunked(file, 1000) == wanted
    assert file.read() == NEXT
    # As on gunicorn, which receives the bytes in pieces of any size.
    received: list[bytes] = []
    at = 0
    while at < len(data):
        size = pieces[len(received) % len(pieces)]
        received.append(data[at : at + size])
        at += size
    unreader = IterUnreader(received)
    assert read_chunked(UnreadBytes(unreader), 1000) == wanted
    assert unreader.read(len(NEXT)) == NEXT


INVALID = [
    b"", b"\r\n", b"5", b"5\r\n", b"5\r\nabc", b"5\r\nabcde", b"5\r\nabcde\r\n", b"5\r\nabcdefgh\r\n0\r\n\r\n",
    b"5\r\nabc\r\n0\r\n\r\n", b"5\nabcde\n0\n\n", b"5\r\nabcde\n\n0\r\n\r\n",
    b"0\r\n", b"0\r\nX: 1\r\n", b"0\r\nX: 1\n\r\n", b"0\r\nX: " + b"1" * 100_000,
    b"0\r\n" + b"X: 1\r\n" * chunked.MAX_TRAILERS + b"\r\n",
    b"0x5\r\nabcde\r\n0\r\n\r\n", b"+5\r\nabcde\r\n0\r\n\r\n", b"-5\r\nabcde\r\n0\r\n\r\n",
    b" 5\r\nabcde\r\n0\r\n\r\n", b"5 \r\nabcde\r\n0\r\n\r\n", b"1_0\r\n", b"\xb2\r\n",
    b";a\r\n", b"5;a\rb\r\nabcde\r\n0\r\n\r\n", b"5;" + b"a" * chunked.MAX_LINE + b"\r\nabcde\r\n0\r\n\r\n",
    b"0" * 17 + b"\r\n\r\n", b"1" * 100_000,
]  # fmt: skip


def sources(data: bytes) -> list[Source]:
    return [io.BytesIO(data), UnreadBytes(IterUnreader([data])), UnreadBytes(IterUnreader(re.findall(rb"(?s).", data)))]


@pytest.mark.parametrize("data", INVALID, ids=lambda data: repr(data[:30]))
def test_everything_else_is_an_error(data: bytes) -> None:
    for source in sources(data):
        with pytest.raises(ChunkError):
            read_chunked(source, 1_000_000)


def test_data_is_limited_before_it_is_read() -> None:
    assert read_chunked(io.BytesIO(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), 5) == b"abcde"
    for data in (b"3\r\nabc\r\n3\r\n", b"6\r\n", b"f" * 16 + b"\r\n"):
        for source in sources(data):
            with pytest.raises(TooLargeError):
                read_chunked(source, 5)


def test_number_of_chunks_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "MAX_CHUNKS", 3)
    assert read_chunked(io.BytesIO(b"1\r\na\r\n" * 3 + b"0\r\n\r\n"), 5) == b"aaa"
    with pytest.raises(ChunkError, match="more than 3 chunks"):
        read_chunked(io.BytesIO(b"1\r\na\r\n" * 4 + b"0\r\n\r\n"), 5)
