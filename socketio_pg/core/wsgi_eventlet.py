"""Accepted connections and the WSGI server on eventlet, for `green`. `wsgi_gevent` has the same names."""

import contextlib
import errno
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

with warnings.catch_warnings():
    # eventlet warns that it is deprecated: see docs/deploy.md on pinned libraries.
    warnings.simplefilter("ignore")
    import eventlet
    import eventlet.green.socket
    import eventlet.green.ssl
    import eventlet.greenio
    import eventlet.hubs
    import eventlet.wsgi

from socketio_pg.core import heads, progress
from socketio_pg.core.green_eventlet import Readiness, plain_socket

logger = logging.getLogger("socketio_pg.green")


class ClientSocket(eventlet.greenio.GreenSocket):  # type: ignore[misc]
    """An accepted connection that times out, and that yields to other green threads while it receives.

    A timeout raises ConnectionResetError, which WSGI servers handle without logging.
    """

    _progress: progress.Progress
    #: What was read of the connection before it had this object.
    received = b""

    def _trampoline(self, *args: Any, **options: Any) -> Any:
        write = bool(options.get("write"))
        options["timeout"] = self._progress.may_wait(options.get("timeout"), write=write)
        options["timeout_exc"] = ConnectionResetError(errno.ECONNRESET, "the client stalled")
        if not write:
            return super()._trampoline(*args, **options)
        began = time.monotonic()
        try:
            return super()._trampoline(*args, **options)
        finally:
            self._progress.waited(time.monotonic() - began)

    def send(self, data: bytes, flags: int = 0) -> int:
        sent: int = super().send(data, flags)
        self._progress.sent(sent)
        return sent

    def recv(self, size: int, flags: int = 0) -> bytes:
        # eventlet does not yield to other green threads while data is available.
        if self._progress.should_yield():
            eventlet.sleep()
        received: bytes = super().recv(size, flags)
        return received


def client_socket(connection: Any) -> ClientSocket:
    """Return the green ``connection`` as a :class:`ClientSocket`."""
    # The class is changed in place: a new object on the descriptor would lose it when the old one is freed.
    connection.__class__ = ClientSocket
    connection._progress = progress.Progress()
    return connection  # type: ignore[no-any-return]


def adopt(descriptor: int) -> ClientSocket:
    """Return an accepted connection of another process as a :class:`ClientSocket`, which owns ``descriptor``."""
    eventlet.hubs.notify_opened(descriptor)
    return client_socket(eventlet.greenio.GreenSocket(plain_socket.socket(fileno=descriptor)))


def take_received(connection: Any) -> bytes:
    """Return, once, what was read of a connection when it was accepted."""
    if not isinstance(connection, ClientSocket):
        return b""
    received, connection.received = connection.received, b""
    return received


def request_socket(environ: dict[str, Any]) -> Any:
    """Return the connection of a request to the library's own WSGI server; None if it came to another one."""
    return environ["eventlet.input"].get_socket() if "eventlet.input" in environ else None


@contextlib.contextmanager
def unread_body(environ: dict[str, Any]) -> Iterator[Any]:
    """Yield the body of a request to the library's own WSGI server as it is on the connection.

    The ``with`` block reads the whole body.
    """
    body = environ["wsgi.input"]
    if body.should_send_hundred_continue:
        body.is_hundred_continue_response_sent = True
        body.send_hundred_continue_response()
    yield body.rfile


def take_over(connection: Any) -> Any:
    """Return a non-blocking plain socket on the connection of a request, which the WSGI server does not answer."""
    eventlet.wsgi.WSGI_LOCAL.already_handled = True
    taken = plain_socket.socket(fileno=os.dup(connection.fileno()))
    taken.setblocking(False)
    return taken


def socket_pair() -> tuple[Any, Any]:
    """Return two connected sockets: a non-blocking plain one, and a green one."""
    plain, other = plain_socket.socketpair()
    plain.setblocking(False)
    return plain, eventlet.greenio.GreenSocket(other)


@contextlib.contextmanager
def noticing_end(connection: Any, on_end: Callable[[], None]) -> Iterator[None]:
    """Call ``on_end`` from the hub when the peer of the green socket closes it during the ``with`` block."""
    readiness = Readiness(connection.fileno())
    reading = True

    def readable(_: int) -> None:
        nonlocal reading
        if not reading:
            return
        reading = False
        readiness.stop_reading()  # once: unread bytes, perhaps the next request, would call this over and over
        try:
            gone = not (connection.fd if hasattr(connection, "fd") else connection).recv(1, plain_socket.MSG_PEEK)
        except BlockingIOError:
            gone = False
        except OSError:
            gone = True
        if gone:
            on_end()

    readiness.start_reading(readable)
    try:
        yield
    finally:
        reading = False
        readiness.close()


#: Connections that one call of accept() lets ``look`` take before other green threads run.
_TAKEN_IN_A_ROW = 8


def keep_accepting(look: Callable[[Any, Any, Any], bytes | None] | None = None) -> None:
    """Patch eventlet's accept(): retries after a lack of descriptors or memory, and limits TLS handshakes.

    Unpatched, such a lack ends gunicorn's acceptor for good, and gunicorn does not limit handshakes. Makes accepted
    connections :class:`ClientSocket`.

    ``look(listener, socket, address)`` gets the address of the listening socket, each accepted connection as a
    non-blocking plain socket, and the client's address. It must not wait, and returns None when it has taken the
    connection, otherwise what it has read.
    """
    accept = eventlet.greenio.GreenSocket.accept
    received = b""
    #: Listening socket → its address, family, type and protocol.
    names: dict[Any, tuple[Any, int, int, int]] = {}

    def patient(self: Any) -> Any:
        nonlocal received
        while True:
            try:
                if self.act_non_blocking:
                    return accept(self) if look is None else accept_and_look(self, look)
                client, address = accept(self)
                client = client_socket(client)
                client.received, received = received, b""
                return client, address
            except OSError as error:
                if error.errno not in progress.LACKS:
                    raise
                logger.warning("cannot accept a connection: %s; retrying", error.strerror)
                eventlet.sleep(0.1)

    def accept_and_look(self: Any, look: Callable[[Any, Any, Any], bytes | None]) -> Any:
        # gunicorn wraps its listener: the outer accept() calls this one, and makes the result a green socket at once.
        nonlocal received
        listener = self.fd
        if listener not in names:
            names[listener] = (listener.getsockname(), int(listener.family), int(listener.type), listener.proto)
        name, *kind = names[listener]
        for _ in range(_TAKEN_IN_A_ROW):
            descriptor, address = listener._accept()  # the standard library's accept() looks all of that up each time
            client = plain_socket.socket(*kind, fileno=descriptor)
            client.setblocking(False)
            eventlet.hubs.notify_opened(descriptor)
            read = look(name, client, address)
            if read is not None:
                received = read
                return client, address
        raise BlockingIOError(errno.EAGAIN, "other green threads run before the next one")

    eventlet.greenio.GreenSocket.accept = patient

    shake_hands = eventlet.green.ssl.GreenSSLSocket.do_handshake

    def shake_hands_in_time(self: Any, *args: Any) -> Any:
        if not self.server_side:
            return shake_hands(self, *args)
        with eventlet.Timeout(progress.HANDSHAKE, ConnectionResetError(errno.ECONNRESET, "no TLS handshake")):
            return shake_hands(self, *args)

    eventlet.green.ssl.GreenSSLSocket.do_handshake = shake_hands_in_time


def listen(host: str, port: int, backlog: int = 4096) -> Any:
    """Return a listening green socket."""
    family, _, _, _, address = eventlet.green.socket.getaddrinfo(host, port, type=eventlet.green.socket.SOCK_STREAM)[0]
    return eventlet.listen(address, family, backlog=backlog, reuse_port=False)


class _Protocol(eventlet.wsgi.HttpProtocol):  # type: ignore[misc]
    """Refuses doubtful requests. Closes the connection after a request in chunks, as under gunicorn."""

    rfile: Any

    def parse_request(self) -> bool:
        self.rfile = heads.Lines(self.rfile)  # until the end of the headers: the caller sets it back
        try:
            if not super().parse_request():
                return False
            heads.check(self.headers, self.request_version)
        except heads.HeadError as error:
            self.send_error(400, str(error))
            return False
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
        return True

    def get_environ(self) -> dict[str, Any]:
        """Return the environ, with the version that the client speaks: eventlet says HTTP/1.0 of each request."""
        environ: dict[str, Any] = super().get_environ()
        environ["SERVER_PROTOCOL"] = self.request_version
        return environ

    def log_message(self, *_: Any) -> None:
        """Write nothing: clients could fill the log with invalid requests."""


def serve_wsgi(listener: Any, application: Any, max_connections: int) -> None:
    """Serve ``application`` until :func:`stop_serving` is called on this green thread."""
    with contextlib.suppress(eventlet.StopServe):
        # debug=True would send Python tracebacks to clients.
        eventlet.wsgi.server(
            listener, application, protocol=_Protocol, max_size=max_connections, log_output=False, debug=False
        )


def stop_serving(thread: Any) -> None:
    """Stop accepting connections; the serving green thread ends when the open requests have."""
    eventlet.kill(thread, eventlet.StopServe())
