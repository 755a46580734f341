"""The client side of WebSocket, Engine.IO and Socket.IO, without any I/O.

A handshake is a generator: it yields whenever it needs more bytes, which are sent into it, and returns when it is done.
It writes through its `Link`.
"""

import json
from collections.abc import Generator, Mapping
from typing import Protocol

MASK = b"\x5a\xc3\x17\x99"
SERVER_PING = b"\x81\x012"
"""The Engine.IO ping as a complete WebSocket frame."""

Handshake = Generator[None, bytes, None]
Text = Generator[None, bytes, bytes]


class ProtocolError(Exception):
    """The server sent something that the benchmark does not expect."""


class Link(Protocol):
    """The connection of a client during its handshake."""

    def send(self, data: bytes) -> None: ...

    def reopen(self) -> None:
        """Switch to a second connection; the first stays open until the end of the handshake."""
        ...


def client_frame(text: bytes) -> bytes:
    """Return a masked text frame (RFC 6455, 5.2)."""
    size = len(text)
    head = bytes((0x81, 0x80 | size)) if size < 126 else bytes((0x81, 0xFE, size >> 8, size & 0xFF))
    mask = (MASK * (size // 4 + 1))[:size]
    masked = (int.from_bytes(text, "big") ^ int.from_bytes(mask, "big")).to_bytes(size, "big")
    return head + MASK + masked


PONG = client_frame(b"3")


class FrameReader:
    """Splits the bytes of a server into the payloads of its text frames; keeps an incomplete frame."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the next payloads. Raises ProtocolError for close, binary, masked or compressed frames."""
        data = self._rest + data
        texts: list[bytes] = []
        start, available = 0, len(data)
        while available - start >= 2:
            if data[start] != 0x81:
                raise ProtocolError(f"frame starts with {data[start : start + 40]!r}")
            size, body = data[start + 1], start + 2
            if size >= 126:
                width = 2 if size == 126 else 8
                body += width
                if body > available:
                    break
                size = int.from_bytes(data[start + 2 : body], "big")
            if body + size > available:
                break
            texts.append(data[body : body + size])
            start = body + size
        self._rest = data[start:]
        return texts


class Conversation:
    """The client's side of a handshake: Engine.IO open, Socket.IO connect, subscriptions.

    `since` is sent with each subscription: the position in the log after which to continue. `token` authenticates.
    """

    def __init__(
        self,
        link: Link,
        channels: tuple[str, ...],
        since: Mapping[str, object] | None = None,
        token: str | None = None,
    ) -> None:
        self._link = link
        self._connect = b"40" if token is None else b"40" + json.dumps({"token": token}).encode()
        self._channels = channels
        self._since = since
        self._frames = FrameReader()
        self._texts: list[bytes] = []
        self._passed: list[bytes] = []

    def rest(self) -> tuple[list[bytes], FrameReader]:
        """Return, after the handshake, the messages that it did not wait for, and the reader for the next data."""
        return self._passed + self._texts, self._frames

    def websocket(self) -> Handshake:
        """Use only WebSocket: open, connect, subscribe."""
        yield from self._upgrade("")
        yield from self._expect(b"0{")
        self._link.send(client_frame(self._connect))
        yield from self._expect(b"40")
        yield from self._subscribe()

    def polling(self) -> Handshake:
        """Like the stock JavaScript client: open and connect by long-polling, upgrade, subscribe."""
        opened = yield from self._http("GET", "")
        sid = "&sid=" + json.loads(opened.split(b"\x1e")[0][1:])["sid"]
        yield from self._http("POST", sid, b"40")
        connected = yield from self._http("GET", sid)
        if not connected.startswith(b"40{"):
            raise ProtocolError(f"answer to the connect: {connected!r}")
        self._link.reopen()
        yield from self._upgrade(sid)
        self._link.send(client_frame(b"2probe"))
        yield from self._expect(b"3probe")
        self._link.send(client_frame(b"5"))
        yield from self._subscribe()

    def _subscribe(self) -> Handshake:
        for number, channel in enumerate(self._channels):
            argument = {"channel": channel} if self._since is None else {"channel": channel, "since": self._since}
            request = json.dumps(["subscribe", argument], separators=(",", ":"))
            self._link.send(client_frame(f"42{number}{request}".encode()))
        for _ in self._channels:
            # Acknowledgements may come in any order.
            answer = yield from self._expect(b"43")
            if b'"ok":true' not in answer:
                raise ProtocolError(f"subscribe was refused: {answer!r}")

    def _upgrade(self, sid: str) -> Handshake:
        self._link.send(
            f"GET /socket.io/?EIO=4&transport=websocket{sid} HTTP/1.1\r\n"
            "Host: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += yield
        head, _, rest = head.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101"):
            raise ProtocolError(f"no WebSocket: {head[:200]!r}")
        self._texts += self._frames.feed(rest)

    def _expect(self, prefix: bytes) -> Text:
        """Return the next message with this prefix. Keep others (hello, subscribed, noop, first events) for later."""
        while True:
            while self._texts:
                text = self._texts.pop(0)
                if text.startswith(prefix):
                    return text
                if text.startswith((b"44", b"1")):
                    raise ProtocolError(f"instead of {prefix!r} came {text[:200]!r}")
                if text == b"2":
                    self._link.send(PONG)
                else:
                    self._passed.append(text)
            self._texts += self._frames.feed((yield))

    def _http(self, method: str, sid: str, body: bytes = b"") -> Text:
        head = (
            f"{method} /socket.io/?EIO=4&transport=polling{sid} HTTP/1.1\r\n"
            f"Host: 127.0.0.1\r\nContent-Type: text/plain;charset=UTF-8\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._link.send(head.encode() + body)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += yield
        head_bytes, _, content = answer.partition(b"\r\n\r\n")
        fields = head_bytes.lower().split(b"\r\n")
        if not fields[0].startswith(b"http/1.1 200"):
            raise ProtocolError(f"{method} was answered {answer[:300]!r}")
        sizes = [int(field.partition(b":")[2]) for field in fields if field.startswith(b"content-length:")]
        if sizes:
            while len(content) < sizes[0]:
                content += yield
            return content
        while not content.endswith(b"0\r\n\r\n"):
            content += yield
        return b"".join(content.split(b"\r\n")[1:-3:2])
