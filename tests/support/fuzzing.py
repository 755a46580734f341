"""What a stranger may send, made by hypothesis: from bytes at random to packets that are nearly right."""

import contextlib
import itertools
import json
import os
import socket
import struct
from typing import Any

from hypothesis import strategies as st

from socketio_pg.engine.frames import FrameError, FrameReader
from socketio_pg.engine.polling import decode_payload
from socketio_pg.protocol.packets import NotAPacketError, Packet
from tests.support.frames import TEXT, frame
from tests.support.raw_http import POLLING, Connection, WebSocket
from tests.support.server import ServerProcess

#: Pieces of which packets are made; each may stand where it does not belong.
_NAMES = st.sampled_from(
    ["subscribe", "unsubscribe", "publish", "authenticate", "connect", "disconnect", "*", "event", "", "\r\n"]
)
_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([2**63, -(2**64), "__proto__", "\ud800", {"_placeholder": True, "num": 0}]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_REQUEST = st.fixed_dictionaries(
    {},
    optional={
        "channel": st.sampled_from(["fuzz", "fuzz-2", "", "socketio_pg", "x" * 64, "é", "a*"]) | _JSON,
        "payload": _JSON,
        "durable": st.booleans() | _JSON,
        "since": st.fixed_dictionaries({}, optional={"epoch": _JSON, "position": _JSON}) | _JSON,
        "history": st.integers(-2, 2000) | _JSON,
        "token": st.text(max_size=20) | _JSON,
    },
)
_EVENT = st.tuples(_NAMES | _JSON, _REQUEST | _JSON).map(list) | st.lists(_JSON, max_size=3)
_BODY = _EVENT.map(lambda event: json.dumps(event)) | st.text(max_size=30)
_TYPE = st.sampled_from(["40", "41", "42", "43", "44", "45", "46", "47", "4", "2", "3", "5", "6", "1", "", "b4", "0"])
_COUNT = st.sampled_from(["", "", "1-", "0-", "9999999999-", "-1-"])
_NAMESPACE = st.sampled_from(["", "", "/custom,", "/nowhere,", "/", "/\r\n,", "/" + "x" * 300 + ","])
_ID = st.sampled_from(["", "", "7", "0", "-1", "9" * 100, "x"])
PACKETS = st.tuples(_TYPE, _COUNT, _NAMESPACE, _ID, _BODY).map("".join) | st.text(max_size=40)

FRAMES = st.one_of(
    PACKETS.map(lambda packet: frame(TEXT, packet.encode("utf-8", "surrogatepass"))),
    st.builds(
        lambda opcode, payload, final, reserved: frame(opcode, payload, final=final, reserved=reserved),
        st.integers(0, 15),
        st.binary(max_size=200),
        st.booleans(),
        st.sampled_from([0, 0, 0, 0x10, 0x40, 0x70]),
    ),
    # A length that does not fit what follows.
    st.builds(
        lambda first, size, rest: struct.pack("!BBQ", first, 0xFF, size) + rest,
        st.integers(0, 255),
        st.integers(0, 2**64 - 1),
        st.binary(max_size=40),
    ),
    st.binary(max_size=60),
)

_METHODS = st.sampled_from(["GET", "POST", "POST", "PUT", "OPTIONS", "HEAD", "X" * 50, ""])
_PATHS = st.sampled_from(
    [POLLING, POLLING + "&sid=x", "/socket.io/", "/socket.io/?EIO=3&transport=polling", "/socket.io/?transport=x",
     "/static/test.html", "/static/..%2fweb.py", "/readyz", "/metrics", "/" + "a" * 5000, "*", "", "/?\x01"]
)  # fmt: skip
_HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["Content-Length", "Transfer-Encoding", "Upgrade", "Connection", "Origin", "Host", "Cookie",
                         "Authorization", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Expect", "X-Forwarded-For"]),
        st.sampled_from(["", "0", "5", "-1", "99999999999", "chunked", "websocket", "Upgrade", "close", "13",
                         "dGhlIHNhbXBsZSBub25jZQ==", "https://evil.example", "100-continue", "Bearer x", "\x00", "é"])
        | st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30),
    ),
    max_size=6,
)  # fmt: skip
REQUESTS = st.builds(
    lambda method, path, headers, body: (
        f"{method} {path} HTTP/1.1\r\n".encode("latin-1")
        + b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in headers)
        + b"\r\n"
        + body
    ),
    _METHODS,
    _PATHS,
    _HEADERS,
    st.binary(max_size=60) | PACKETS.map(lambda packet: packet.encode("utf-8", "surrogatepass")),
) | st.binary(max_size=200)


# -- without I/O -------------------------------------------------------------------------------------------------------


def fuzz_frames(data: bytes, cuts: list[int]) -> None:
    """However the bytes come, they are the same messages, or the same error."""

    def read(pieces: list[bytes]) -> tuple[list[Any], int | None]:
        reader, found = FrameReader(1000), []
        try:
            for piece in pieces:
                found += list(reader.feed(piece))
        except FrameError as error:
            return found, error.code
        return found, None

    at = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[start:end] for start, end in itertools.pairwise(at)]
    whole, code = read([data])
    cut, cut_code = read(pieces)
    assert code == cut_code
    assert whole == cut[: len(whole)] or whole == cut


def fuzz_packet(text: str) -> None:
    """A packet, or none: nothing else."""
    with contextlib.suppress(NotAPacketError):
        Packet().decode(text)


def fuzz_payload(body: bytes) -> None:
    """Engine.IO packets, or ValueError."""
    with contextlib.suppress(ValueError):
        decode_payload(body)


# -- against a server of `watched_app` ---------------------------------------------------------------------------------

CHANNEL = "fuzz"


def fuzz_websocket(server: ServerProcess, frames: list[bytes], first: int) -> list[int]:
    """Send ``frames`` to a client's WebSocket, and good events before and between; the numbers that were acknowledged.

    Each number is published at most once, in the channel :data:`CHANNEL`, and counted from ``first``.
    """
    done: list[int] = []
    with WebSocket(server) as client:
        client.connect()
        client.socket.settimeout(10)
        client.text(f"421000{json.dumps(['publish', {'channel': CHANNEL, 'payload': first}])}")
        while not (answer := client.read_text()).startswith("431000"):
            pass
        assert '"ok":true' in answer
        done.append(first)
        with contextlib.suppress(ConnectionError):
            for offset, data in enumerate(frames, 1):
                event = ["publish", {"channel": CHANNEL, "payload": first + offset}]
                client.text(f"42{1000 + offset}{json.dumps(event)}")
                client.send(data)
            # After an unfinished frame this is the rest of it: then nobody answers, and we say goodbye.
            client.text('42999["unsubscribe",{"channel":"nothing"}]')
            client.socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                _, payload = client.read_frame()
                text = payload.decode("utf-8", "replace")
                if text.startswith("431") and '"ok":true' in text:
                    done.append(first + int(text[2 : text.index("[")]) - 1000)
    return done


def fuzz_http(server: ServerProcess, request: bytes) -> bytes:
    """Send it, and read until the server closes; what it said."""
    with Connection(server) as connection:
        connection.socket.settimeout(30)
        answer = b""
        with contextlib.suppress(ConnectionError):
            connection.send(request)
            connection.socket.shutdown(socket.SHUT_WR)
            while data := connection.socket.recv(65536):
                answer += data
    assert b"Traceback" not in answer
    assert b'File "' not in answer
    return answer


def random_seed() -> int:
    return int.from_bytes(os.urandom(4), "big")
