"""Accepted connections and the WSGI server on gevent, for `green`. `wsgi_eventlet` has the same names."""

import contextlib
import errno
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.pool
import gevent.pywsgi
import gevent.server
import gevent.socket
import gevent.ssl

from socketio_pg.core import heads, progress
from socketio_pg.core.green_gevent import READ, plain_socket, sleep

logger = logging.getLogger("socketio_pg.green")


class ClientSocket(gevent.socket.socket):  # type: ignore[misc]
    """An accepted connection that times out, and that yields to other green threads while it receives.

    A timeout raises ConnectionResetError, which WSGI servers handle without logging.
    """

    __slots__ = ("_progress", "received")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._progress = progress.Progress()
        #: What was read of the connection before it had this object.
        self.received = b""

    def _wait(self, watcher: Any, timeout_exc: Any = None) -> None:
        write = watcher is self._write_event
        timeout = self._progress.may_wait(self.timeout, write=write)
        began = time.monotonic()
        try:
            gevent.socket.wait(watcher, timeout, ConnectionResetError(errno.ECONNRESET, "the client stalled"))
        finally:
            if write:
                self._progress.waited(time.monotonic() - began)

    def send(self, data: bytes, flags: int = 0, **options: Any) -> int:
        sent: int = super().send(data, flags, **options)
        self._progress.sent(sent)
        return sent

    def recv(self, *args: Any) -> bytes:
        self._yield_now_and_then()
        received: bytes = super().recv(*args)
        return received

    def recv_into(self, *args: Any) -> int:
        self._yield_now_and_then()
        size: int = super().recv_into(*args)
        return size

    def _yield_now_and_then(self) -> None:
        # gevent does not yield to other green threads while data is available.
        if self._progress.should_yield():
            sleep()


def client_socket(connection: Any) -> ClientSocket:
    """Return the green ``connection`` as a :class:`ClientSocket`."""
    family, kind, protocol = connection.family, connection.type, connection.proto
    return ClientSocket(family, kind, protocol, fileno=connection.detach())


def adopt(descriptor: int) -> ClientSocket:
    """Return an accepted connection of another process as a :class:`ClientSocket`, which owns ``descriptor``."""
    return ClientSocket(fileno=descriptor)


def take_received(connection: Any) -> bytes:
    """Return, once, what was read of a connection when it was accepted."""
    if not isinstance(connection, ClientSocket):
        return b""
    received, connection.received = connection.received, b""
    return received


#: The connection of a request to the library's own WSGI server, in the environ.
_CONNECTION = "gevent.connection"


def request_socket(environ: dict[str, Any]) -> Any:
    """Return the connection of a request to the library's own WSGI server; None if it came to another one."""
    return environ.get(_CONNECTION)


@contextlib.contextmanager
def unread_body(environ: dict[str, Any]) -> Iterator[Any]:
    """Yield the body of a request to the library's own WSGI server as it is on the connection.

    The ``with`` block reads the whole body.
    """
    body = environ["wsgi.input"]
    body._send_100_continue()
    yield body.rfile


class _TakenOver:
    """In place of the socket inside a connection that was taken over: it seems to be reset by the client.

    gunicorn and gevent's server log nothing when they try to answer or to read the next request. This works with any
    middleware around the application, unlike an object that an application returns.
    """

    def __bool__(self) -> bool:
        return False  # as gevent's own object in place of a closed socket

    def fileno(self) -> int:
        return -1

    def __getattr__(self, name: str) -> Any:
        return self._reset

    def _reset(self, *_: object) -> None:
        raise ConnectionResetError(errno.ECONNRESET, "the connection was taken over")


def take_over(connection: Any) -> Any:
    """Return a non-blocking plain socket on the connection of a request, which the WSGI server does not answer."""
    if isinstance(connection, gevent.ssl.SSLSocket):
        connection._sslobj = None
    # The descriptor itself: with a duplicate the other one would stay in the loop's epoll set for ever, and each event
    # on it would make libev set up all descriptors anew.
    taken = plain_socket.socket(fileno=connection.detach())
    connection._sock = _TakenOver()
    taken.setblocking(False)
    return taken


def socket_pair() -> tuple[Any, Any]:
    """Return two connected sockets: a non-blocking plain one, and a green one."""
    one, other = plain_socket.socketpair()
    # In a patched process the original function makes gevent's sockets, too.
    plain = plain_socket.socket(fileno=one.detach())
    plain.setblocking(False)
    return plain, gevent.socket.socket(fileno=other.detach())


@contextlib.contextmanager
def noticing_end(connection: Any, on_end: Callable[[], None]) -> Iterator[None]:
    """Call ``on_end`` from the hub when the peer of the green socket closes it during the ``with`` block."""
    watcher = gevent.get_hub().loop.io(connection.fileno(), READ)

    def readable() -> None:
        watcher.stop()  # once: unread bytes, perhaps the next request, would call this over and over
        try:
            gone = not connection._sock.recv(1, plain_socket.MSG_PEEK)
        except BlockingIOError:
            gone = False
        except OSError:
            gone = True
        if gone:
            on_end()

    watcher.start(readable)
    try:
        yield
    finally:
        watcher.stop()
        watcher.close()


#: Connections that one call of do_read() lets ``look`` take before other callbacks run.
_TAKEN_IN_A_ROW = 8


def keep_accepting(look: Callable[[Any, Any, Any], bytes | None] | None = None) -> None:
    """Patch gevent's server: it waits quietly after a lack of descriptors or memory, and limits TLS handshakes.

    Unpatched, it prints a traceback for each such lack and for each handshake that fails. Makes accepted connections
    :class:`ClientSocket`.

    ``look(listener, socket, address)`` gets the address of the listening socket, each accepted connection as a
    non-blocking plain socket, and the client's address. It must not wait, and returns None when it has taken the
    connection, otherwise what it has read.
    """
    if look is None:
        gevent.server.StreamServer.do_read = _accept
    else:
        plain = plain_socket.socket

        def accept_and_look(self: Any) -> tuple[ClientSocket, Any] | None:
            """Replaces :meth:`gevent.server.StreamServer.do_read`."""
            for _ in range(_TAKEN_IN_A_ROW):
                accepted = _accept_descriptor(self)
                if accepted is None:
                    return None
                descriptor, address = accepted
                family, kind, protocol = self.socket.family, self.socket.type, self.socket.proto
                client = plain(family, kind, protocol, fileno=descriptor)
                client.setblocking(False)
                read = look(self.socket.getsockname(), client, address)
                if read is not None:
                    connection = ClientSocket(family, kind, protocol, fileno=client.detach())
                    connection.received = read
                    return connection, address
            return None

        gevent.server.StreamServer.do_read = accept_and_look
    gevent.server.StreamServer.wrap_socket_and_handle = _handle_tls


def _handle_tls(self: Any, connection: Any, address: Any) -> None:
    """Replaces :meth:`gevent.server.StreamServer.wrap_socket_and_handle`."""
    try:
        with gevent.Timeout(progress.HANDSHAKE, ConnectionResetError(errno.ECONNRESET, "no TLS handshake")):
            secured = self.wrap_socket(connection, **self.ssl_args)
    except OSError:  # any client can cause it
        return
    with secured:
        self.handle(secured, address)


def _accept(self: Any) -> tuple[ClientSocket, Any] | None:
    """Replaces :meth:`gevent.server.StreamServer.do_read`."""
    accepted = _accept_descriptor(self)
    if accepted is None:
        return None
    descriptor, address = accepted
    return ClientSocket(self.socket.family, self.socket.type, self.socket.proto, fileno=descriptor), address


def _accept_descriptor(self: Any) -> tuple[int, Any] | None:
    """Return the next connection of a :class:`gevent.server.StreamServer`; None if there is none now."""
    try:
        descriptor, address = self.socket._accept()
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno not in progress.LACKS:
            raise
        logger.warning("cannot accept a connection: %s; retrying", error.strerror)
        self.stop_accepting()
        self._timer = self.loop.timer(0.1)
        self._timer.start(self._start_accepting_if_started)
        return None
    return descriptor, address


#: The largest rest of a body in bytes that is read to find the next request.
_MAX_REST = 100_000


class _Body(gevent.pywsgi.Input):  # type: ignore[misc]
    """The body of a request. What the application leaves of it is read only if that is little."""

    def left(self) -> int:
        """Return how many bytes are left, without those in chunks."""
        return (self.content_length or 0) - int(self.position)

    def _discard(self) -> None:
        # gevent would read bodies of any size, and chunks less strictly than proxies do.
        if not self.chunked_input and self.left() <= _MAX_REST:
            super()._discard()


class _RequestHandler(gevent.pywsgi.WSGIHandler):  # type: ignore[misc]
    """Refuses doubtful requests, and passes the connection to the application, which may take it over.

    Closes the connection after a request in chunks, as under gunicorn. Logs no errors of clients, who could fill the
    disk.
    """

    wsgi_input: _Body

    def MessageClass(self, source: Any, *_: Any) -> Any:
        """Read the headers."""
        headers = super().MessageClass(heads.Lines(source))
        if self.request_version == "HTTP/0.9":
            raise heads.HeadError("HTTP/0.9 has no headers")
        heads.check(headers, self.request_version)
        return headers

    def read_request(self, line: str) -> bool:
        super().read_request(line)
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
        return True

    def _connection_upgrade_requested(self) -> bool:
        return False  # gevent would give the application the connection in place of the body

    def get_environ(self) -> Any:
        environ = super().get_environ()
        environ[_CONNECTION] = self.socket
        body = self.wsgi_input
        self.wsgi_input = environ["wsgi.input"] = _Body(
            self.rfile, self.content_length, body.socket, body.chunked_input
        )
        return environ

    def finalize_headers(self) -> None:
        super().finalize_headers()
        if self.close_connection and self.request_version == "HTTP/1.1":
            self.response_headers.append((b"Connection", b"close"))

    def handle_one_response(self) -> None:
        super().handle_one_response()
        if self.wsgi_input.left() > 0:
            self.close_connection = True

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client has gone before the answer to an invalid request
            super().handle()

    def handle_error(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, OSError) and error.errno is None:  # an incomplete body
            self.close_connection = True
        else:
            super().handle_error(kind, error, trace)

    def _handle_client_error(self, _: Any) -> Any:
        return "400", gevent.pywsgi._BAD_REQUEST_RESPONSE


class _Server(gevent.pywsgi.WSGIServer):  # type: ignore[misc]
    do_read = _accept
    handler_class = _RequestHandler


def listen(host: str, port: int, backlog: int = 4096) -> Any:
    """Return a listening green socket."""
    family, _, _, _, address = gevent.socket.getaddrinfo(host, port, type=plain_socket.SOCK_STREAM)[0]
    listener = gevent.socket.socket(family=family)
    try:
        listener.setsockopt(plain_socket.SOL_SOCKET, plain_socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


class _StopServe(Exception):
    """Ends :func:`serve_wsgi`."""


def serve_wsgi(listener: Any, application: Any, max_connections: int) -> None:
    """Serve ``application`` until :func:`stop_serving` is called on this green thread."""
    server = _Server(listener, application, spawn=gevent.pool.Pool(max_connections), log=None)
    with contextlib.suppress(_StopServe):
        server.serve_forever()


def stop_serving(thread: Any) -> None:
    """Stop accepting connections; the serving green thread ends when the open requests have, at most 2 s later."""
    thread.kill(_StopServe())
