"""Flask-SocketIO on :class:`Server`: the extension that applications use, and its WSGI middleware."""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import flask_socketio
import socketio
from flask import Flask

from socketio_pg.protocol.server import Server

#: Gets the WSGI environ and start_response; returns a response, or None to let the request pass.
BeforeRequest: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes] | None]
#: Gets the WSGI environ of a request that was let pass and has been answered, or has failed.
AfterRequest: TypeAlias = Callable[[dict[str, Any]], None]


#: The path of Socket.IO's requests. Some clients leave the last slash out.
PATH = "/socket.io/"


#: The key of the environ at which the application puts a function that waits as long as the request must last, without
#: the context of the request.
HOLD = "socketio_pg.hold"


def is_below(path: str, folder: str) -> bool:
    """Return whether ``path`` is ``folder``, with or without its last slash, or a path below it."""
    return path.startswith(folder) or f"{path}/" == folder


def _pass(environ: dict[str, Any], start_response: Callable[..., Any] | None = None) -> None:
    """Answer no request, and note none."""


def _leave_all(environ: dict[str, Any]) -> bool:
    """Leave every handshake to ``before_request``."""
    return False


class Middleware(socketio.WSGIApp):  # type: ignore[misc]
    """Sends requests below ``path`` to the Socket.IO server and all others to Flask.

    ``before_request`` goes first, and ``after_request`` last. ``admits(environ)`` returns whether the first of them
    lets a handshake pass; it never waits.
    """

    def __init__(
        self,
        server: Server,
        app: Flask,
        path: str,
        before_request: BeforeRequest,
        after_request: AfterRequest,
        admits: Callable[[dict[str, Any]], bool] = _leave_all,
    ) -> None:
        super().__init__(server, app.wsgi_app, socketio_path=path)
        self._app = app
        self._before_request = before_request
        self._after_request = after_request
        self._admits = admits

    def accept_websocket(self, environ: dict[str, Any], take: Callable[[], Any]) -> bool:
        """Open a WebSocket past WSGI, as :meth:`Engine.accept_websocket` does. Return False to be called."""
        if not self._admits(environ):
            return False
        environ["flask.app"] = self._app
        try:
            accepted: bool = self.engineio_app.eio.accept_websocket(environ, take)
        finally:
            self._after_request(environ)
        return accepted

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        answer = self._before_request(environ, start_response)
        if answer is None:
            try:
                if not is_below(environ["PATH_INFO"], self.engineio_path):
                    return self._ask_application(environ, start_response)
                environ["flask.app"] = self._app
                answer = self.engineio_app.handle_request(environ, start_response)
            finally:
                self._after_request(environ)
        # Clients would read a body as the next response. gunicorn 27 drops it, and logs a line each time.
        return () if environ["REQUEST_METHOD"] == "HEAD" else answer

    def _ask_application(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        answer: Iterable[bytes] = self.wsgi_app(environ, start_response)
        hold = environ.pop(HOLD, None)
        if hold is not None:
            hold()
        return answer


def middleware_of(app: Any) -> Middleware | None:
    """Return the middleware of a Flask application; None if anything is around it, or if it is another application."""
    plain = isinstance(app, Flask) and type(app).__call__ is Flask.__call__
    return app.wsgi_app if plain and type(app.wsgi_app) is Middleware else None


class SocketIO(flask_socketio.SocketIO):  # type: ignore[misc]
    """Flask-SocketIO on :class:`Server`.

    ``before_request(environ, start_response)`` may answer a request before Socket.IO and the Flask application;
    ``after_request(environ)`` follows when one of these has answered, or has failed. ``admits`` is that of
    :class:`Middleware`. Other options are those of :class:`Server`. Replaces :meth:`init_app` as a whole, because the
    stock one makes its server.
    """

    server: Server
    sockio_mw: Middleware

    def init_app(self, app: Flask, **options: Any) -> None:
        self.server_options.update(options)
        self.manage_session = self.server_options.pop("manage_session", True)
        before_request = self.server_options.pop("before_request", _pass)
        after_request = self.server_options.pop("after_request", _pass)
        admits = self.server_options.pop("admits", _leave_all)
        path = self.server_options.pop("path", PATH).lstrip("/")
        self.server = Server(**self.server_options)
        self.async_mode = self.server.async_mode
        for message, handler, namespace in self.handlers:
            self.server.on(message, handler, namespace=namespace)
        for namespace_handler in self.namespace_handlers:
            self.server.register_namespace(namespace_handler)
        app.extensions["socketio"] = self
        self.sockio_mw = Middleware(self.server, app, path, before_request, after_request, admits)
        app.wsgi_app = self.sockio_mw  # type: ignore[method-assign]
