"""Serves the connections of a gunicorn worker: reads the head of each request before gunicorn parses it.

A hook sees each head first, and may give the connection away, to another process for instance. Replaces `handle()` of
gunicorn's worker, whose parser, application and answers stay.
"""

import contextlib
import errno
import ssl
from collections.abc import Callable
from typing import Any, TypeAlias

from gunicorn import http, util
from gunicorn.sock import ssl_wrap_socket

from socketio_pg.core import green
from socketio_pg.engine import handover
from socketio_pg.engine.head import end_of_head, proxy_length

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


class Front:
    """Serves connections as gunicorn's ``worker`` does. ``route`` sees each complete head first."""

    def __init__(self, worker: Any, route: Route | None = None) -> None:
        self._worker = worker
        self._route = route
        self._proxied = worker.cfg.proxy_protocol != "off"

    def install(self) -> None:
        """Serve the connections that the worker accepts. Call it before the worker runs."""
        self._worker.handle = self._handle

    def serve(self, descriptor: int, received: bytes, address: Address, listener: Address) -> None:
        """Serve a connection that another process has given away. Owns ``descriptor``. Returns when it is closed.

        ``received``, ``address`` and ``listener`` are those of its :class:`Connection`.
        """
        self._serve(Connection(green.adopt(descriptor), address, listener, received, passed=True))

    # -- one connection ------------------------------------------------------------------------------------------------

    def _handle(self, listener: Any, client: Any, address: Address) -> None:
        """Replaces :meth:`gunicorn.workers.base_async.AsyncWorker.handle`, and those of its subclasses."""
        self._serve(Connection(client, address, listener.getsockname()), secure=self._worker.cfg.is_ssl)

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
                connection.request = next(parser)
            request = connection.request
            # Only the first request has it.
            proxy = request.proxy_protocol_info = request.proxy_protocol_info or proxy
            worker.handle_request(connection.listener, request, connection.socket, connection.address)
            if not worker.cfg.keepalive:
                return

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
