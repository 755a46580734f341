"""A request's connection: WebSocket handshakes, taking it over from the WSGI server, refusing what is not read.

It knows the WSGI servers (gunicorn's eventlet worker, eventlet's own) and eventlet, but neither frames nor Engine.IO.
"""

import base64
import binascii
import contextlib
import os
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import eventlet
import eventlet.hubs
import eventlet.patcher
import eventlet.wsgi

from socketio_pg import frames

# The blocking originals: green sockets would wait where we must not.
_socket: Any = eventlet.patcher.original("socket")

#: Seconds that a refused request's connection is read from, so that the refusal arrives.
LINGER = 1.0


def can_take_over(environ: dict[str, Any]) -> bool:
    """Whether the request's socket is a plain one: TLS that ends in this process lives in the request's own socket."""
    return not isinstance(_request_socket(environ), ssl.SSLSocket)


def outlives_request(environ: dict[str, Any]) -> bool:
    """Whether the connection stays when the request ends: gunicorn closes its copy only, eventlet.wsgi shuts down."""
    return "gunicorn.socket" in environ


def take_over(environ: dict[str, Any]) -> Any:
    """A non-blocking socket of our own on the request's connection; the WSGI server will write nothing to it."""
    eventlet.wsgi.WSGI_LOCAL.already_handled = True
    taken = _socket.socket(fileno=os.dup(_request_socket(environ).fileno()))
    taken.setblocking(False)
    with contextlib.suppress(OSError):  # not on a Unix socket
        taken.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    return taken


def handshake_problem(environ: dict[str, Any]) -> str | None:
    """Why this is no WebSocket handshake (RFC 6455, section 4.2.1), or None."""
    # eventlet's own server says so of every request.
    if outlives_request(environ) and environ.get("SERVER_PROTOCOL") == "HTTP/1.0":
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
    return None


WRONG_VERSION = "Sec-WebSocket-Version must be 13"


def _tokens(header: str) -> list[str]:
    return [token.strip().lower() for token in header.split(",")]


def handshake_answer(environ: dict[str, Any]) -> bytes:
    """What a good handshake is answered with."""
    accept = frames.accept_key(environ["HTTP_SEC_WEBSOCKET_KEY"])
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n\r\n"
    ).encode()


def refuse(environ: dict[str, Any], status: str, body: bytes) -> tuple[()]:
    """Answer a request whose body was not read, and close its connection. Waits :data:`LINGER` at most.

    Past the WSGI server, which would take what comes of the body for the next request, or wait for it.
    """
    eventlet.wsgi.WSGI_LOCAL.already_handled = True
    connection = _request_socket(environ)
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    deadline = time.monotonic() + LINGER
    with contextlib.suppress(OSError, EOFError), eventlet.Timeout(LINGER, False):
        connection.sendall(head.encode() + body)
        connection.shutdown(_socket.SHUT_WR)
        # Closed with bytes that nobody has read, the connection would be reset, and the answer with it.
        while time.monotonic() < deadline and connection.recv(65536):
            eventlet.sleep()
    return ()


@contextlib.contextmanager
def noticing_hangup(environ: dict[str, Any], on_hangup: Callable[[], None]) -> Iterator[None]:
    """Call ``on_hangup``, from the hub, when the client closes the request's connection while the body lasts."""
    connection = _request_socket(environ)
    if isinstance(connection, ssl.SSLSocket):
        yield  # what is readable there may be anything
        return
    hub = eventlet.hubs.get_hub()
    listener: Any = None

    def readable(_: int) -> None:
        nonlocal listener
        found, listener = listener, None
        if found is None:
            return
        hub.remove(found)  # once: what is there may be the next request, and would wake us for ever
        try:
            gone = not (connection.fd if hasattr(connection, "fd") else connection).recv(1, _socket.MSG_PEEK)
        except BlockingIOError:
            gone = False
        except OSError:
            gone = True
        if gone:
            on_hangup()

    listener = hub.add(hub.READ, connection.fileno(), readable, _ignore, _ignore)
    listener.greenlet = hub.greenlet
    try:
        yield
    finally:
        if listener is not None:
            hub.remove(listener)
            listener = None


def _request_socket(environ: dict[str, Any]) -> Any:
    return environ["gunicorn.socket"] if "gunicorn.socket" in environ else environ["eventlet.input"].get_socket()


def _ignore(*_: object) -> None:
    """For the hub's callbacks about a descriptor that is closed elsewhere."""
