"""Serves the connections of a gunicorn worker: reads the head of each request before gunicorn parses it.

A hook sees each head first, and may give the connection away, to another process for instance. Plain WebSocket
handshakes, which are most of what a server gets when its clients return, go to the engine past gunicorn and WSGI.
Replaces `handle()` of gunicorn's worker, whose parser, application and answers stay for everything else.
"""

import contextlib
import errno
import functools
import os
import ssl
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from gunicorn import SERVER_SOFTWARE, http, util
from gunicorn.glogging import Logger
from gunicorn.http.message import _ip_in_allow_list
from gunicorn.sock import ssl_wrap_socket

from socketio_pg.core import green
from socketio_pg.engine import handover
from socketio_pg.engine.head import (
    PLAIN_FIELDS,
    PLAIN_HEAD,
    PLAIN_LINE,
    end_of_head,
    plain_handshake,
    proxy_length,
)

#: The address of a client or of a listening socket, as `getpeername()` and `getsockname()` return it.
Address: TypeAlias = Any


class Connection:
    """A connection between two of its requests, the head of the next one being read."""

    __slots__ = ("_taken", "address", "listener", "passed", "preface", "request", "socket", "unparsed")

    def __init__(
        self, socket: Any, address: Address, listener: Address, unparsed: bytes = b"", *, passed: bool = False
    ) -> None:
        #: The green socket, which this module owns.
        self.socket = socket
        self._taken: handover.TakenOver | None = None
        #: The client's address.
        self.address = address
        #: The address of the listening socket that has accepted the connection.
        self.listener = listener
        #: The header of the PROXY protocol that the connection began with.
        self.preface = b""
        #: What was read and not parsed yet: the next request, as far as it has arrived.
        self.unparsed = unparsed
        #: Whether another process has given it away, until the first request is routed.
        self.passed = passed
        #: gunicorn's object for the request that is being answered.
        self.request: Any = None

    def give_away(self) -> Any:
        """Return a non-blocking plain socket on this connection, which the caller owns from now on.

        Nothing else reads or writes it. For :meth:`Front.serve` of another process, :attr:`received` has the bytes that
        were read from it. With TLS it is one end of a pair: this process continues to encrypt.
        """
        self._taken = handover.TakenOver(self.socket, under_gunicorn=True)
        return self._taken.socket

    @property
    def received(self) -> bytes:
        """The bytes that another :meth:`Front.serve` needs: the header of the PROXY protocol, and those unparsed."""
        return self.preface + self.unparsed

    def hold(self) -> None:
        """Wait as long as this process must encrypt for the new owner."""
        if self._taken is not None:
            self._taken.hold_given_away()


#: Gets the head of a request, with its last empty line, and the connection. Returns whether it has given that away. May
#: wait, and raises nothing.
Route: TypeAlias = Callable[[bytes, Connection], bool]


class Application(Protocol):
    """Takes WebSockets without WSGI."""

    #: The path of the handshakes, with a slash at its end.
    engineio_path: str

    def accept_websocket(self, environ: dict[str, Any], take: Callable[[], Any]) -> bool:
        """Open a WebSocket on the non-blocking plain socket that ``take()`` returns. Never waits.

        Return False, without calling that, to get the request by WSGI.
        """


class Front:
    """Serves connections as gunicorn's ``worker`` does. ``route`` sees each complete head first.

    ``application`` gets plain WebSocket handshakes, unless gunicorn's settings have something to do with each request.
    """

    def __init__(self, worker: Any, application: Application | None = None, route: Route | None = None) -> None:
        self._worker = worker
        self._application = None if _needs_gunicorn(worker) else application
        self._route = route
        self._proxied = worker.cfg.proxy_protocol != "off"
        #: The connections of other processes that are being served. gunicorn limits only those that it accepts.
        self._passed = 0
        #: What the environ of every request has.
        self._base = {
            "SERVER_SOFTWARE": SERVER_SOFTWARE,
            "wsgi.version": (1, 0),
            "wsgi.multithread": True,
            "wsgi.multiprocess": worker.cfg.workers > 1,
            "wsgi.run_once": False,
        }
        self._scheme = "https" if worker.cfg.is_ssl else "http"
        headers = worker.cfg.secure_scheme_headers
        self._secure = [(f"HTTP_{name.replace('-', '_')}", value) for name, value in headers.items()]
        self._trusts = functools.lru_cache(1_000)(functools.partial(_trusts, worker.cfg))

    def install(self) -> None:
        """Serve the connections that the worker accepts. Call it before the worker runs."""
        self._worker.handle = self._handle
        early = self._application is not None and self._route is None and not self._proxied
        green.keep_accepting(self._look if early and not self._worker.cfg.is_ssl else None)

    def _look(self, listener: Address, socket: Any, address: Address) -> bytes | None:
        """Open a WebSocket on a connection that was just accepted, if its handshake has arrived. Never waits.

        Return None if it has; otherwise what was read of the connection, which stays the caller's.
        """
        try:
            data: bytes = socket.recv(PLAIN_HEAD + 1)
        except OSError:  # nothing has arrived, or the worker finds out
            return b""
        try:
            return None if self._accept_websocket(data, listener, address, lambda: socket) else data
        except Exception:  # a bug, at which eventlet's acceptor would end
            self._worker.log.exception("a WebSocket could not be opened")
            with contextlib.suppress(OSError):
                socket.shutdown(green.SHUT_RDWR)  # not close(): the engine may listen to it already
            return None

    def _accept_websocket(self, data: bytes, listener: Address, address: Address, take: Callable[[], Any]) -> bool:
        """Open a WebSocket if ``data`` is a plain handshake, on the plain socket that ``take()`` returns."""
        worker, application = self._worker, self._application
        # The last of --max-requests, and those after it, end the worker.
        if application is None or not worker.alive or worker.nr + 1 >= worker.max_requests:
            return False
        environ: dict[str, Any] | None = plain_handshake(data, application.engineio_path)
        if environ is None or not self.complete(environ, listener, address):
            return False
        if not application.accept_websocket(environ, take):
            return False
        worker.nr += 1
        return True

    def complete(self, environ: dict[str, Any], listener: Address, address: Address) -> bool:
        """Add what the connection and the settings say, as gunicorn does. Return whether that leaves no doubt."""
        environ.update(self._base)
        scheme = self._scheme
        schemes = [("http", "https")[environ[name] == value] for name, value in self._secure if name in environ]
        if schemes and self._trusts(address[0] if isinstance(address, tuple) else None):
            if len(schemes) > 1:
                return False
            scheme = schemes[0]
        environ["wsgi.url_scheme"] = scheme
        if isinstance(address, tuple):
            environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = address[0], str(address[1])
        elif isinstance(address, str):
            environ["REMOTE_ADDR"] = address
        else:
            environ["REMOTE_ADDR"] = address.decode()
        if isinstance(listener, tuple):
            environ["SERVER_NAME"], environ["SERVER_PORT"] = listener[0], str(listener[1])
            return True
        name, colon, port = environ.get("HTTP_HOST", "").partition(":")
        environ["SERVER_NAME"] = name
        environ["SERVER_PORT"] = port if colon else "443" if scheme == "https" else "80"
        # A Unix socket, whose name gunicorn takes for that of the server if it has a colon.
        return bool(name) and ":" not in port and isinstance(listener, str) and ":" not in listener

    def serve(self, descriptor: int, received: bytes, address: Address, listener: Address) -> None:
        """Serve a connection that another process has given away. Owns ``descriptor``. Returns when it is closed.

        ``received``, ``address`` and ``listener`` are those of its :class:`Connection`. Closes it at once when as
        many as --worker-connections are being served.
        """
        if self._passed >= self._worker.worker_connections:
            os.close(descriptor)
            return
        self._passed += 1
        try:
            self._serve(Connection(green.adopt(descriptor), address, listener, received, passed=True))
        finally:
            self._passed -= 1

    # -- one connection ------------------------------------------------------------------------------------------------

    def _handle(self, listener: Any, client: Any, address: Address) -> None:
        """Replaces :meth:`gunicorn.workers.base_async.AsyncWorker.handle`, and those of its subclasses."""
        try:
            name = listener.getsockname()
        except OSError:  # the worker ends, and has closed it: an error here would end it at once
            util.close(client)
            return
        connection = Connection(client, address, name, green.take_received(client))
        self._serve(connection, secure=self._worker.cfg.is_ssl)

    def _serve(self, connection: Connection, *, secure: bool = False) -> None:
        log = self._worker.log
        try:
            if secure:
                self._shake_hands(connection)
            self._answer_requests(connection)
        except (http.errors.NoMoreData, StopIteration) as error:
            log.debug("Closing connection. %s", error)
        except ssl.SSLError as error:
            if error.args[0] == ssl.SSL_ERROR_EOF:
                log.debug("ssl connection closed")
            else:
                self._report(connection, error)
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                log.debug("Ignoring %s", error)
            else:
                log.exception("Socket error processing request.")
        except BaseException as error:
            self._report(connection, error)
        finally:
            util.close(connection.socket)

    def _shake_hands(self, connection: Connection) -> None:
        cfg = self._worker.cfg
        if not isinstance(connection.socket, ssl.SSLSocket):  # gevent's server has wrapped it
            connection.socket = ssl_wrap_socket(connection.socket, cfg)
        if not cfg.do_handshake_on_connect:
            connection.socket.do_handshake()

    def _report(self, connection: Connection, error: BaseException) -> None:
        """Log an error, and answer the client with its status."""
        self._worker.handle_error(connection.request, connection.socket, connection.address, error)

    def _answer_requests(self, connection: Connection) -> None:
        worker = self._worker
        parser = http.get_parser(worker.cfg, connection.socket, connection.address)
        parser.unreader.unread(connection.unparsed)
        limit = worker.timeout_ctx if worker.cfg.keepalive else contextlib.nullcontext
        proxy: dict[str, Any] = {}
        while True:
            arrived, connection.request = False, None
            with limit():
                head = self._next_head(parser, connection)
                if head is None:
                    connection.request = next(parser)
                arrived = True
            if not arrived:
                return
            if head is not None:
                if self._route is not None and self._route(head, connection):
                    connection.hold()
                    return
                if self._takes_websocket(connection):
                    return
                connection.request = next(parser)
            request = connection.request
            # Only the first request has it.
            proxy = request.proxy_protocol_info = request.proxy_protocol_info or proxy
            worker.handle_request(connection.listener, request, connection.socket, connection.address)
            if not worker.cfg.keepalive:
                return

    def _takes_websocket(self, connection: Connection) -> bool:
        """Open a WebSocket if the next request is a plain handshake."""
        socket = connection.socket
        if isinstance(socket, ssl.SSLSocket) or connection.preface:
            return False
        take = functools.partial(green.take_over, socket)
        return self._accept_websocket(connection.unparsed, connection.listener, connection.address, take)

    def _next_head(self, parser: Any, connection: Connection) -> bytes | None:
        """Read up to the end of the next head and return that; None when gunicorn can answer without the rest.

        What was read is left to the parser. Raises StopIteration at the end of the connection.
        """
        previous = parser.mesg
        if previous and (previous.should_close() or parser.finish_body() is False):
            raise StopIteration
        unreader = parser.unreader
        data = b""
        while True:
            more: bytes = unreader.read()
            data += more
            start = proxy_length(data) if self._proxied and not previous else 0
            end = -1 if not more else None if start is None else end_of_head(data, start)
            if end is not None:
                break
        unreader.unread(data)
        if end < 0:
            return None
        if start:
            connection.preface = data[:start]
        connection.unparsed = data[start:]
        return data[start:end]


def _needs_gunicorn(worker: Any) -> bool:
    """Return whether gunicorn does something with each request, or may refuse a plain handshake."""
    cfg = worker.cfg
    return bool(
        type(worker.log) is not Logger  # such as that for statsd
        or worker.log.access_log_enabled
        or cfg.post_request is not cfg.settings["post_request"].default
        or os.environ.get("SCRIPT_NAME")
        or 0 < cfg.limit_request_line < PLAIN_LINE
        or 0 < cfg.limit_request_fields < PLAIN_FIELDS
        or 0 < cfg.limit_request_field_size < PLAIN_HEAD
    )


def _trusts(cfg: Any, address: str | None) -> bool:
    """Return whether gunicorn believes what a proxy with this IP address says about the scheme."""
    if address is None:
        return True
    trusted: bool = _ip_in_allow_list(address, cfg.forwarded_allow_ips, cfg.forwarded_allow_networks())
    return trusted
