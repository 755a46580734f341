"""WebSocket frames: reading and writing as in RFC 6455, without I/O."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.engine.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    INVALID_DATA,
    MAX_EMPTY_FRAGMENTS,
    PING,
    POLICY_VIOLATION,
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
from tests.support.frames import MASK, frame


def test_examples_of_the_rfc() -> None:
    assert accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # section 1.3
    assert FrameReader(100).feed(bytes.fromhex("818537fa213d7f9f4d5158")) == [(TEXT, "Hello")]  # section 5.7
    assert encode_text("Hello") == bytes.fromhex("810548656c6c6f")


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
def test_payload_sizes(size: int) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    payload = payload[:size]
    assert FrameReader(100_000).feed(frame(BINARY, payload)) == [(BINARY, payload)]
    written = encode_frame(BINARY, payload)
    assert written.endswith(payload)
    assert len(written) - size == (2 if size < 126 else 4 if size < 65536 else 10)


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_unmask(payload: bytes, mask: bytes) -> None:
    assert unmask(payload, mask) == bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


@given(st.lists(st.text(max_size=200), max_size=5), st.data())
def test_stream_can_be_cut_anywhere(texts: list[str], data: st.DataObject) -> None:
    stream = b"".join(frame(TEXT, text.encode()) for text in texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    reader, found = FrameReader(10_000), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:end])
    assert found == [(TEXT, text) for text in texts]


def test_control_frame_between_fragments() -> None:
    stream = (
        frame(TEXT, "hé".encode()[:2], final=False)  # cut within a character
        + frame(PING, b"now")
        + frame(CONTINUATION, "é".encode()[1:], final=False)
        + frame(CONTINUATION, b"llo")
        + frame(TEXT, b"next")
    )
    assert FrameReader(100).feed(stream) == [(PING, b"now"), (TEXT, "héllo"), (TEXT, "next")]


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (encode_text("not masked"), PROTOCOL_ERROR),
        (frame(TEXT, b"x", reserved=0x40), PROTOCOL_ERROR),
        (frame(0x3, b"x"), PROTOCOL_ERROR),
        (frame(0xB, b"x"), PROTOCOL_ERROR),
        (frame(CONTINUATION, b"x"), PROTOCOL_ERROR),
        (frame(TEXT, b"x", final=False) + frame(TEXT, b"y"), PROTOCOL_ERROR),
        (frame(PING, b"x", final=False), PROTOCOL_ERROR),
        (frame(PONG, b"x" * 126), PROTOCOL_ERROR),
        (frame(TEXT, b"\xff"), INVALID_DATA),
        (frame(TEXT, b"\xed\xa0\x80"), INVALID_DATA),
        (frame(TEXT, b"x" * 101), TOO_BIG),
        (frame(TEXT, b"x" * 60, final=False) + frame(CONTINUATION, b"x" * 60), TOO_BIG),
        (frame(TEXT, b"")[:2] + b"", None),
        (struct.pack("!BBQ", 0x81, 0xFF, 2**62), TOO_BIG),  # refused before its payload arrives
        (struct.pack("!BBQ", 0x81, 0xFF, 2**63), PROTOCOL_ERROR),  # the most significant bit must be 0
        (struct.pack("!BBH", 0x81, 0xFE, 125) + MASK + b"x" * 125, PROTOCOL_ERROR),  # not the shortest length
        (struct.pack("!BBQ", 0x81, 0xFF, 65535), PROTOCOL_ERROR),
        (frame(CLOSE, b"x"), PROTOCOL_ERROR),
        (frame(CLOSE, struct.pack("!H", 1005)), PROTOCOL_ERROR),
        (frame(CLOSE, struct.pack("!H", 1000) + b"\xff"), INVALID_DATA),
    ],
)
def test_protocol_violation_has_its_close_code(stream: bytes, code: int | None) -> None:
    reader = FrameReader(100)
    if code is None:
        assert reader.feed(stream) == []
        return
    with pytest.raises(FrameError) as raised:
        reader.feed(stream)
    assert raised.value.code == code


@given(st.binary(max_size=400))
def test_garbage_raises_only_frame_error(garbage: bytes) -> None:
    try:
        messages = FrameReader(200).feed(garbage)
    except FrameError:
        return
    for opcode, payload in messages:
        assert opcode in (TEXT, BINARY, CLOSE, PING, PONG)
        assert len(payload) <= 200


def test_control_frame_does_not_count_towards_the_message_size() -> None:
    stream = frame(TEXT, b"x" * 90, final=False) + frame(PING, b"y" * 50) + frame(CONTINUATION, b"x" * 10)
    assert FrameReader(100).feed(stream) == [(PING, b"y" * 50), (TEXT, "x" * 100)]


def test_number_of_empty_fragments_is_limited() -> None:
    reader = FrameReader(100)
    reader.feed(frame(TEXT, b"x", final=False))
    reader.feed(frame(CONTINUATION, b"", final=False) * MAX_EMPTY_FRAGMENTS)
    assert reader.held == 1
    with pytest.raises(FrameError) as raised:
        reader.feed(frame(CONTINUATION, b"", final=False))
    assert raised.value.code == POLICY_VIOLATION


def test_total_size_of_fragments_is_checked_by_the_header() -> None:
    reader = FrameReader(100_000)
    reader.feed(frame(BINARY, b"x" * 50_000, final=False))
    with pytest.raises(FrameError) as raised:
        reader.feed(frame(CONTINUATION, b"x" * 50_001, final=False)[:8])  # only its header
    assert raised.value.code == TOO_BIG
    assert reader.held <= 50_008


def test_size_limit_can_be_raised_within_a_message() -> None:
    reader = FrameReader(10)
    reader.feed(frame(TEXT, b"x" * 10, final=False))
    reader.max_size = 20
    assert reader.feed(frame(CONTINUATION, b"x" * 10)) == [(TEXT, "x" * 20)]


def test_large_frame_in_single_bytes_is_not_copied_repeatedly() -> None:
    # 300 KB byte by byte: with a copy for each byte it would copy 45 GB, and this test would time out.
    stream = frame(TEXT, "é".encode() * 150_000)
    reader, found = FrameReader(1_000_000), []
    for index in range(len(stream)):
        found += reader.feed(stream[index : index + 1])
    assert found == [(TEXT, "é" * 150_000)]


@given(st.data())
def test_any_fragmentation_yields_the_message(data: st.DataObject) -> None:
    text = data.draw(st.text(max_size=300))
    encoded = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=5)))
    pieces = [encoded[start:end] for start, end in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]
    stream = b""
    for index, piece in enumerate(pieces):
        stream += frame(TEXT if index == 0 else CONTINUATION, piece, final=index == len(pieces) - 1)
        if index < len(pieces) - 1:
            stream += frame(PING, b"%d" % index)
    bounds = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader, found = FrameReader(10_000), []
    for start, end in zip([0, *bounds], [*bounds, len(stream)], strict=True):
        found += reader.feed(stream[start:end])
    assert found == [*((PING, b"%d" % index) for index in range(len(pieces) - 1)), (TEXT, text)]
    assert reader.held == 0


@pytest.mark.parametrize("code", [*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999])
def test_valid_close_codes(code: int) -> None:
    payload = struct.pack("!H", code) + "ünd".encode()
    assert FrameReader(10).feed(frame(CLOSE, payload)) == [(CLOSE, payload)]


@pytest.mark.parametrize("code", [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_invalid_close_codes(code: int) -> None:
    with pytest.raises(FrameError) as raised:
        FrameReader(10).feed(frame(CLOSE, struct.pack("!H", code)))
    assert raised.value.code == PROTOCOL_ERROR


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
def test_reserved_opcodes_are_refused_by_the_header(opcode: int) -> None:
    with pytest.raises(FrameError) as raised:
        FrameReader(1000).feed(frame(opcode, b"x" * 100)[:6])
    assert raised.value.code == PROTOCOL_ERROR


def test_close_frames() -> None:
    assert encode_close(1001) == b"\x88\x02\x03\xe9"
    assert FrameReader(10).feed(frame(CLOSE, struct.pack("!H", 4000) + b"bye")) == [(CLOSE, b"\x0f\xa0bye")]
