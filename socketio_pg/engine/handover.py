"""The connection of a WSGI request: WebSocket handshakes, hand-over to the engine, refusals before the body is read.

This module knows gunicorn, and through `green` the WSGI server of the development server, but neither frames nor
Engine.IO.
"""

import base64
import binascii
import contextlib
import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from socketio_pg.core import green
from socketio_pg.engine import frames
from socketio_pg.engine.chunked import Source

#: Seconds for which the connection of a refused request is still read, so that the refusal arrives, and bytes.
LINGER, LINGER_BYTES = 1.0, 16_000_000
_JSON = (("Content-Type", "application/json"),)


class TakenOver:
    """A connection, taken over from the WSGI server, which writes nothing more to it.

    ``socket`` is a non-blocking socket on the connection. TLS that ends in this process lives in the request's own
    socket: there ``socket`` is one end of a pair, and two green threads copy between the other end and the request's
    socket.
    """

    def __init__(self, connection: Any, *, under_gunicorn: bool) -> None:
        self._under_gunicorn = under_gunicorn
        self._copiers: Sequence[green.GreenThread] = ()
        self._connection = connection
        if isinstance(connection, ssl.SSLSocket):
            self.socket, other = green.socket_pair()
            self._copiers = (green.spawn(_copy, connection, other), green.spawn(_copy, other, connection))
        else:
            self.socket = green.take_over(connection)

    def hold_request(self, is_over: Callable[[], bool]) -> None:
        """Wait as long as the WSGI request must last for the connection to live; ``is_over()`` says when that ends.

        gunicorn closes only its own copy of the descriptor, so nothing has to wait there, unless the request has the
        TLS. eventlet's own server shuts the connection down.
        """
        if self._under_gunicorn and not self._copiers:
            return
        while not is_over():
            green.sleep(0.5)
        self._end_copying()

    def detect_loss(self, seconds: float) -> None:
        """Let the kernel end the connection when the client has acknowledged nothing of what was sent for ``seconds``.

        For clients that answer nothing otherwise: the kernel would retry for a quarter of an hour.
        """
        connection = self._connection if self._copiers else self.socket
        with contextlib.suppress(OSError):  # a Unix socket
            connection.setsockopt(green.IPPROTO_TCP, green.TCP_USER_TIMEOUT, int(seconds * 1000))

    def hold_given_away(self) -> None:
        """Wait as long as another process needs this one for TLS."""
        if self._copiers:
            with contextlib.suppress(OSError):
                self._copiers[1].wait()  # until it closes its end
            self._end_copying()

    def _end_copying(self) -> None:
        if not self._copiers:
            return
        for copier in self._copiers:
            # The last bytes are still on their way; a peer that does not read them gets no longer than this.
            with contextlib.suppress(green.TimedOut), green.timeout(LINGER):
                copier.wait()
            copier.kill()
        with contextlib.suppress(OSError):  # closed already
            green.take_over(self._connection).close()


def taken_over(environ: dict[str, Any]) -> TakenOver:
    """Take the connection of a WSGI request over."""
    return TakenOver(_request_socket(environ), under_gunicorn="gunicorn.socket" in environ)


def _copy(source: Any, target: Any) -> None:
    """Copy bytes from ``source`` to ``target`` until either ends, which is no error."""
    with contextlib.suppress(OSError, EOFError, ValueError):
        while data := source.recv(16384):
            target.sendall(data)
    with contextlib.suppress(OSError, ValueError):
        # Both ways: of TLS there is no half.
        target.shutdown(green.SHUT_RDWR if isinstance(target, ssl.SSLSocket) else green.SHUT_WR)


def handshake_problem(environ: dict[str, Any]) -> str | None:
    """Return why this is not a WebSocket handshake (RFC 6455, section 4.2.1), or None."""
    # eventlet's own server reports HTTP/1.0 for every request.
    if "gunicorn.socket" in environ and environ.get("SERVER_PROTOCOL") == "HTTP/1.0":
        return "WebSockets need HTTP/1.1"
    if not environ.get("HTTP_HOST"):
        return "Host is missing"
    if "websocket" not in _tokens(environ.get("HTTP_UPGRADE", "")):
        return "Upgrade must be websocket"
    if "upgrade" not in _tokens(environ.get("HTTP_CONNECTION", "")):
        return "Connection must be Upgrade"
    if environ.get("HTTP_SEC_WEBSOCKET_VERSION") != "13":
        return WRONG_VERSION
    try:
        key = base64.b64decode(environ.get("HTTP_SEC_WEBSOCKET_KEY", ""), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 16:
        return "Sec-WebSocket-Key must be 16 bytes in base64"
    protocols = _protocols(environ)
    if len(set(protocols)) < len(protocols) or not all(map(_TOKEN.fullmatch, protocols)):
        return "Sec-WebSocket-Protocol must be a list of different names"
    return None


WRONG_VERSION = "Sec-WebSocket-Version must be 13"


#: A token of HTTP (RFC 9110, section 5.6.2).
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _protocols(environ: dict[str, Any]) -> list[str]:
    """Return the subprotocols that a client offers. Empty elements are ignored (RFC 9110, section 5.6.1.2)."""
    offered = environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", "")
    return [name for element in offered.split(",") if (name := element.strip(" \t"))]


def _tokens(header: str) -> list[str]:
    return [token.strip().lower() for token in header.split(",")]


def handshake_answer(environ: dict[str, Any]) -> bytes:
    """Return the response to a valid handshake.

    Selects the first subprotocol that the client offers, as the reference implementation does: browsers end a
    connection whose server selects none of them. A client that offers none gets none (RFC 6455, section 4.2.2).
    """
    accept = frames.accept_key(environ["HTTP_SEC_WEBSOCKET_KEY"])
    selected = "".join(f"Sec-WebSocket-Protocol: {name}\r\n" for name in _protocols(environ)[:1])
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n{selected}\r\n"
    ).encode()


def refuse(
    environ: dict[str, Any],
    start_response: Callable[..., Any],
    status: str,
    body: bytes,
    headers: Iterable[tuple[str, str]] = _JSON,
) -> tuple[()]:
    """Answer a request whose body was not read, and close its connection. Waits at most :data:`LINGER`.

    Bypasses the WSGI server, which would take the body for the next request, or wait for it.
    """
    connection = _request_socket(environ)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    head = f"HTTP/1.1 {status}\r\n{lines}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    deadline = time.monotonic() + LINGER
    with contextlib.suppress(OSError, EOFError, green.TimedOut), green.timeout(LINGER):
        connection.sendall(head.encode() + body)
        connection.shutdown(green.SHUT_WR)
        # A close with unread bytes would reset the connection and lose the answer.
        left = LINGER_BYTES
        while time.monotonic() < deadline and left > 0 and (data := connection.recv(65536)):
            left -= len(data)
            green.sleep()
    with contextlib.suppress(OSError):  # closed already
        green.take_over(connection).close()
    start_response(status, [])
    return ()


@contextlib.contextmanager
def chunked_source(environ: dict[str, Any]) -> Iterator[Source]:
    """Yield the bytes of a chunked body as they are on the connection. The ``with`` block reads the whole body."""
    if "gunicorn.socket" in environ:
        body = environ["wsgi.input"]
        yield UnreadBytes(body.reader.req.unreader)
        body.reader.parser = None  # gunicorn would look for chunks in the next request
        return
    with green.unread_body(environ) as unread:
        yield unread


class UnreadBytes:
    """The bytes that gunicorn has not parsed yet."""

    def __init__(self, unreader: Any) -> None:
        self._unreader = unreader

    def read(self, size: int) -> bytes:
        return self._unreader.read(size)  # type: ignore[no-any-return]

    def readline(self, limit: int) -> bytes:
        found = b""
        while b"\n" not in found and len(found) < limit:
            data = self._unreader.read()
            if not data:
                return found
            found += data
        end = min(limit, found.find(b"\n") + 1 or limit)
        self._unreader.unread(found[end:])
        return found[:end]


@contextlib.contextmanager
def noticing_hangup(environ: dict[str, Any], on_hangup: Callable[[], None]) -> Iterator[None]:
    """Call ``on_hangup``, from the hub, when the client closes the request's connection while the body lasts."""
    connection = _request_socket(environ)
    if isinstance(connection, ssl.SSLSocket):
        yield  # readable TLS bytes may be anything
        return
    with green.noticing_end(connection, on_hangup):
        yield


def has_connection(environ: dict[str, Any]) -> bool:
    """Return whether the request came over a connection: requests of Flask's test client do not."""
    return _request_socket(environ) is not None


def _request_socket(environ: dict[str, Any]) -> Any:
    return environ["gunicorn.socket"] if "gunicorn.socket" in environ else green.request_socket(environ)
