"""Engine.IO over HTTP: query parameters, error codes, responses and their headers. Pure."""

import functools
import hashlib
import hmac
import json
import urllib.parse
import zlib
from http.cookies import CookieError, SimpleCookie
from typing import Any

UNKNOWN_TRANSPORT, UNKNOWN_SESSION, BAD_HANDSHAKE_METHOD, BAD_REQUEST, FORBIDDEN, UNSUPPORTED_VERSION = range(6)
#: Error messages by code, as in the reference implementation.
MESSAGES = (
    "Transport unknown",
    "Session ID unknown",
    "Bad handshake method",
    "Bad request",
    "Forbidden",
    "Unsupported protocol version",
)
#: Responses of this size in bytes are compressed. Smaller ones are not worth it; larger ones would block other clients.
COMPRESSED_FROM, COMPRESSED_TO = 1024, 65_536

Answer = dict[str, Any]


class Query:
    """The parameters of a request's query. The first value counts if a parameter is repeated."""

    __slots__ = ("jsonp", "sid", "transport", "version")

    def __init__(self, query: str) -> None:
        try:
            found = urllib.parse.parse_qs(query, keep_blank_values=True, max_num_fields=20)
        except ValueError:
            found = {}
        self.transport = found.get("transport", [""])[0]
        self.version = found.get("EIO", [""])[0]
        self.sid = found["sid"][0] if "sid" in found else None
        self.jsonp = "j" in found


#: The query of a request is needed two or three times: for its route, for admission control, and by the engine.
parsed = functools.lru_cache(100)(Query)


def error(code: int, detail: str | None = None) -> Answer:
    """Return a 400 response with a code of the reference implementation."""
    message = MESSAGES[code] if detail is None else f"{MESSAGES[code]}: {detail}"
    return {
        "status": "400 BAD REQUEST",
        "headers": [("Content-Type", "application/json")],
        "response": json.dumps({"code": code, "message": message}, separators=(",", ":")).encode(),
    }


def ok(payload: bytes | None = None) -> Answer:
    """Return the response to a poll, with its payload, or to a POST."""
    headers = [("Content-Type", "text/plain; charset=UTF-8"), ("Cache-Control", "no-store")]
    return {"status": "200 OK", "headers": headers, "response": b"ok" if payload is None else payload}


def compressed(environ: dict[str, Any], answer: Answer) -> None:
    """Compress the response with gzip if the client accepts it."""
    body = answer["response"]
    offers = [offer.split(";")[0].strip() for offer in environ.get("HTTP_ACCEPT_ENCODING", "").split(",")]
    if COMPRESSED_FROM <= len(body) <= COMPRESSED_TO and "gzip" in offers:
        packer = zlib.compressobj(1, wbits=31)
        answer["response"] = packer.compress(body) + packer.flush()
        answer["headers"] += [("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding")]


def safe_headers(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return ``headers`` without those that are not printable ASCII: some repeat input from the client."""
    return [(name, value) for name, value in headers if value.isascii() and value.isprintable()]


Fingerprint = tuple[bytes | None, bytes | None]


def fingerprint(environ: dict[str, Any]) -> Fingerprint:
    """Return what identifies a client in all its requests: Authorization, and the application's session cookie.

    As digests, because they are kept as long as the connection. None for a missing header or cookie.
    """
    cookie = None
    if "HTTP_COOKIE" in environ and "flask.app" in environ:
        try:
            found = SimpleCookie(environ["HTTP_COOKIE"]).get(environ["flask.app"].config["SESSION_COOKIE_NAME"])
            cookie = None if found is None else found.value
        except CookieError:
            cookie = environ["HTTP_COOKIE"]
    return _digest(environ.get("HTTP_AUTHORIZATION")), _digest(cookie)


def same_client(kept: Fingerprint, shown: Fingerprint) -> bool:
    """Return whether a request may come from the client whose handshake had the fingerprint ``kept``.

    If the handshake had a session cookie, the request must have the same one. A different Authorization header means a
    different client. A missing one does not: python-engineio's client sends it only with the handshake, and browsers do
    not send it with a WebSocket. Either may be present if the handshake had none.
    """
    (authorization, cookie), (shown_authorization, shown_cookie) = kept, shown
    both = authorization is not None and shown_authorization is not None
    if both and not hmac.compare_digest(authorization or b"", shown_authorization or b""):
        return False
    return cookie is None or (shown_cookie is not None and hmac.compare_digest(cookie, shown_cookie))


def _digest(text: str | None) -> bytes | None:
    return hashlib.sha256(text.encode()).digest() if text else None
