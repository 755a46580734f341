"""Raw HTTP requests that no library would send, and WebSockets frame by frame."""

import contextlib
import json
import re
import socket
from typing import Any, Protocol

from tests.support.frames import CLOSE, MASK, TEXT, frame
from tests.support.patience import PATIENCE

POLLING = "/socket.io/?EIO=4&transport=polling"
WEBSOCKET = "/socket.io/?EIO=4&transport=websocket"
GOOD = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


class Reply:
    """An HTTP response."""

    def __init__(self, head: bytes, body: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Listening(Protocol):
    """A server or a proxy on this machine."""

    port: int


class Connection:
    """A TCP connection to the server."""

    def __init__(self, server: Listening, receive_buffer: int | None = None) -> None:
        self.server = server
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", server.port))
        self.socket = self.connected(self.socket)
        self._buffer = b""

    def connected(self, made: socket.socket) -> socket.socket:
        """Return the socket to use. TLS connections override this."""
        return made

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def request(self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None) -> None:
        """Send a request with Host, and with Content-Length for a body; ``headers`` may replace both."""
        whole = {"Host": f"127.0.0.1:{self.server.port}"}
        if body is not None:
            whole["Content-Length"] = str(len(body))
        whole |= headers or {}
        lines = "".join(f"{name}: {value}\r\n" for name, value in whole.items() if value)
        self.send(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + (body or b""))

    def reply(self, *, body: bool = True) -> Reply:
        """Read one response; ``body``: it has one, which that to HEAD has not."""
        while b"\r\n\r\n" not in self._buffer:
            self._read()
        head, _, rest = self._buffer.partition(b"\r\n\r\n")
        found = re.search(rb"(?i)content-length: *(\d+)", head)
        chunked = re.search(rb"(?i)transfer-encoding: *chunked", head)
        self._buffer = rest
        if not body or b" 101 " in head.split(b"\r\n")[0]:
            return Reply(head, b"")
        if chunked:
            content = b""
            while True:
                size = int(self._line(), 16)
                content += self._take(size)
                self._take(2)
                if not size:
                    return Reply(head, content)
        return Reply(head, self._take(int(found[1])) if found else b"")

    def closed(self) -> bool:
        """Wait until the server has closed the connection. What arrives meanwhile is in :attr:`rest`."""
        with contextlib.suppress(ConnectionError):
            while data := self.socket.recv(65536):
                self._buffer += data
        return True

    @property
    def rest(self) -> bytes:
        """Received bytes after the last response."""
        return self._buffer

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._read()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._read()
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def _read(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError("the server has closed the connection")
        self._buffer += data


class WebSocket(Connection):
    """A WebSocket after its handshake; frames are sent and read one by one."""

    def __init__(self, server: Listening, path: str = WEBSOCKET, headers: dict[str, str] | None = None,
                 receive_buffer: int | None = None) -> None:  # fmt: skip
        super().__init__(server, receive_buffer)
        self.request("GET", path, GOOD | (headers or {}))
        self.answer = self.reply()
        assert self.answer.status == 101, (self.answer.status, self.answer.body)

    def __enter__(self) -> "WebSocket":
        return self

    def frame(self, opcode: int, payload: bytes = b"", *, final: bool = True, mask: bytes = MASK) -> None:
        self.send(frame(opcode, payload, final=final, mask=mask))

    def text(self, text: str) -> None:
        self.frame(TEXT, text.encode())

    def read_frame(self) -> tuple[int, bytes]:
        first, second = self._take(2)
        assert first & 0xF0 == 0x80, "a server's frames are not fragmented and have no extensions"
        assert not second & 0x80, "and not masked"
        size = second
        if size == 126:
            size = int.from_bytes(self._take(2), "big")
        elif size == 127:
            size = int.from_bytes(self._take(8), "big")
        return first & 0xF, self._take(size)

    def read_text(self) -> str:
        opcode, payload = self.read_frame()
        assert opcode == TEXT, (opcode, payload)
        return payload.decode()

    def close_code(self) -> int | None:
        """Read until the close frame, after which nothing may arrive. Return its code, or None if there was none."""
        while True:
            try:
                opcode, payload = self.read_frame()
            except (EOFError, ConnectionError):
                return None
            if opcode == CLOSE:
                assert self.socket.recv(1) == b"", "nothing is written after the close frame"
                return int.from_bytes(payload[:2], "big")

    def connect(self) -> "WebSocket":
        """Connect as a Socket.IO client."""
        assert self.read_text().startswith("0{")
        self.text("40")
        assert self.read_text().startswith("40{")
        return self


def http(server: Listening, method: str = "GET", path: str = POLLING, headers: dict[str, str] | None = None,
         body: bytes | None = None) -> Reply:  # fmt: skip
    with Connection(server) as connection:
        connection.request(method, path, headers, body)
        return connection.reply()


def websocket_path(path: str) -> str:
    """Return the path that upgrades the polling session of ``path`` to a WebSocket."""
    return path.replace("transport=polling", "transport=websocket")


def open_session(server: Listening, headers: dict[str, str] | None = None) -> str:
    """Open a polling session. Return its path for further requests."""
    reply = http(server, headers=headers)
    assert reply.status == 200, reply.body
    return f"{POLLING}&sid={json.loads(reply.body[1:])['sid']}"


def connect_to_session(server: Listening, path: str) -> Connection:
    """Return a connection that the worker with the session of ``path`` serves already."""
    connection = Connection(server)
    connection.request("OPTIONS", path)
    assert connection.reply().status == 200
    return connection


def assert_refused(reply: Reply, code: int, status: int = 400) -> None:
    """Assert that a reply is an error of Engine.IO with this code."""
    assert reply.status == status
    assert reply.headers["content-type"] == "application/json"
    assert reply.json.keys() == {"code", "message"}
    assert reply.json["code"] == code


def open_packet(text: str, interval: int = 25_000, timeout: int = 20_000) -> dict[str, Any]:
    """Return the contents of a session's first packet, which has these times in milliseconds."""
    assert text[0] == "0"
    found: dict[str, Any] = json.loads(text[1:])
    assert found.keys() == {"sid", "upgrades", "pingInterval", "pingTimeout", "maxPayload"}
    assert isinstance(found["sid"], str)
    assert found["pingInterval"] == interval
    assert found["pingTimeout"] == timeout
    assert found["maxPayload"] >= 1_000_000
    return found
