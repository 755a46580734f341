"""Reads the bodies of requests to the HTTP API: JSON objects of a bounded size."""

from collections.abc import Callable, Iterable
from typing import Any

from flask import Response, g, request

from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.engine import handover
from socketio_pg.engine.polling import body_length, read_body
from socketio_pg.protocol.packets import read_json
from socketio_pg.web.api_errors import NotJSONError


def require_json() -> None:
    """Raise :class:`NotJSONError` unless the request says that its body is JSON."""
    if request.mimetype != "application/json" or "HTTP_CONTENT_ENCODING" in request.environ:
        # The content type also makes browsers send a preflight request for pages of other origins.
        raise NotJSONError("the body must be application/json, not compressed")


def read_object(max_bytes: int, count: Callable[[int], object] = lambda size: None) -> dict[str, Any]:
    """Return the object in the body of at most ``max_bytes``. ``count`` gets its size, before it is read if possible.

    Raises :class:`InvalidRequestError`, :class:`BodyError`, and what ``count`` raises.
    """
    length = body_length(request.environ, max_bytes)
    if length is not None:
        count(length)
    body = read_body(request.environ, max_bytes)
    g.socketio_pg_body_read = True
    if length is None:
        count(len(body))
    try:
        value = read_json(body.decode())
    except UnicodeDecodeError:
        raise InvalidRequestError("the body is not UTF-8") from None
    if not isinstance(value, dict):
        raise InvalidRequestError("the body must be one object")
    return value


class _Unread(Response):
    """A response to a request whose body was not read: it closes the connection."""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        headers = [(name, value) for name, value in self.headers if name.lower() != "content-length"]
        return handover.refuse(environ, start_response, self.status, self.get_data(), headers)


def close_if_unread(response: Response) -> Response:
    """Return ``response``, or one that also closes the connection if the body of the request was not read."""
    environ = request.environ
    unread = "socketio_pg_body_read" not in g and (request.content_length or "HTTP_TRANSFER_ENCODING" in environ)
    if unread and handover.has_connection(environ):
        return _Unread(response.get_data(), response.status, response.headers)
    return response
