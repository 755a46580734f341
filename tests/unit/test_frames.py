"""WebSocket frames: what RFC 6455 asks of a server's reader and writer. No I/O."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    INVALID_DATA,
    PING,
    PONG,
    PROTOCOL_ERROR,
    TEXT,
    TOO_BIG,
    FrameError,
    FrameReader,
    accept_key,
    encode_close,
    encode_frame,
    encode_text,
    unmask,
)

MASK = b"\x37\xfa\x21\x3d"


def masked(opcode: int, payload: bytes, *, final: bool = True, mask: bytes = MASK, reserved: int = 0) -> bytes:
    """A client's frame."""
    size = len(payload)
    first = (0x80 if final else 0) | reserved | opcode
    if size < 126:
        head = struct.pack("!BB", first, 0x80 | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, size)
    return head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def test_the_example_of_the_rfc() -> None:
    assert accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # section 1.3
    assert FrameReader(100).feed(bytes.fromhex("818537fa213d7f9f4d5158")) == [(TEXT, "Hello")]  # section 5.7
    assert encode_text("Hello") == bytes.fromhex("810548656c6c6f")


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
def test_sizes(size: int) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    payload = payload[:size]
    assert FrameReader(100_000).feed(masked(BINARY, payload)) == [(BINARY, payload)]
    frame = encode_frame(BINARY, payload)
    assert frame.endswith(payload)
    assert len(frame) - size == (2 if size < 126 else 4 if size < 65536 else 10)


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_unmask(payload: bytes, mask: bytes) -> None:
    assert unmask(payload, mask) == bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


@given(st.lists(st.text(max_size=200), max_size=5), st.data())
def test_however_the_bytes_are_cut_the_messages_are_the_same(texts: list[str], data: st.DataObject) -> None:
    stream = b"".join(masked(TEXT, text.encode()) for text in texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    reader, found = FrameReader(10_000), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:end])
    assert found == [(TEXT, text) for text in texts]


def test_fragments_with_a_control_frame_in_between() -> None:
    stream = (
        masked(TEXT, "hé".encode()[:2], final=False)  # cut within a character
        + masked(PING, b"now")
        + masked(CONTINUATION, "é".encode()[1:], final=False)
        + masked(CONTINUATION, b"llo")
        + masked(TEXT, b"next")
    )
    assert FrameReader(100).feed(stream) == [(PING, b"now"), (TEXT, "héllo"), (TEXT, "next")]


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (encode_text("not masked"), PROTOCOL_ERROR),
        (masked(TEXT, b"x", reserved=0x40), PROTOCOL_ERROR),
        (masked(0x3, b"x"), PROTOCOL_ERROR),
        (masked(0xB, b"x"), PROTOCOL_ERROR),
        (masked(CONTINUATION, b"x"), PROTOCOL_ERROR),
        (masked(TEXT, b"x", final=False) + masked(TEXT, b"y"), PROTOCOL_ERROR),
        (masked(PING, b"x", final=False), PROTOCOL_ERROR),
        (masked(PONG, b"x" * 126), PROTOCOL_ERROR),
        (masked(TEXT, b"\xff"), INVALID_DATA),
        (masked(TEXT, b"\xed\xa0\x80"), INVALID_DATA),
        (masked(TEXT, b"x" * 101), TOO_BIG),
        (masked(TEXT, b"x" * 60, final=False) + masked(CONTINUATION, b"x" * 60), TOO_BIG),
        (masked(TEXT, b"")[:2] + b"", None),
        (struct.pack("!BBQ", 0x81, 0xFF, 2**63), TOO_BIG),  # refused before its bytes are waited for
        (masked(CLOSE, b"x"), PROTOCOL_ERROR),
        (masked(CLOSE, struct.pack("!H", 1005)), PROTOCOL_ERROR),
        (masked(CLOSE, struct.pack("!H", 1000) + b"\xff"), INVALID_DATA),
    ],
)
def test_what_breaks_the_protocol_is_told_with_its_code(stream: bytes, code: int | None) -> None:
    reader = FrameReader(100)
    if code is None:
        assert reader.feed(stream) == []
        return
    with pytest.raises(FrameError) as raised:
        reader.feed(stream)
    assert raised.value.code == code


@given(st.binary(max_size=400))
def test_garbage_gives_messages_or_a_frame_error_and_nothing_else(garbage: bytes) -> None:
    try:
        messages = FrameReader(200).feed(garbage)
    except FrameError:
        return
    for opcode, payload in messages:
        assert opcode in (TEXT, BINARY, CLOSE, PING, PONG)
        assert len(payload) <= 200


def test_a_control_frame_does_not_count_for_the_message_around_it() -> None:
    stream = masked(TEXT, b"x" * 90, final=False) + masked(PING, b"y" * 50) + masked(CONTINUATION, b"x" * 10)
    assert FrameReader(100).feed(stream) == [(PING, b"y" * 50), (TEXT, "x" * 100)]


def test_empty_fragments_keep_no_memory() -> None:
    reader = FrameReader(100)
    reader.feed(masked(TEXT, b"x", final=False))
    reader.feed(masked(CONTINUATION, b"", final=False) * 10_000)
    assert len(reader._fragments or b"") == 1
    assert reader._buffer == b""


def test_close() -> None:
    assert encode_close(1001) == b"\x88\x02\x03\xe9"
    assert FrameReader(10).feed(masked(CLOSE, struct.pack("!H", 4000) + b"bye")) == [(CLOSE, b"\x0f\xa0bye")]
