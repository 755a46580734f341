"""Engine.IO's requests and answers in HTTP: the query, the error codes, the headers. Pure."""

import hashlib
import hmac
import json
import urllib.parse
import zlib
from http.cookies import CookieError, SimpleCookie
from typing import Any

UNKNOWN_TRANSPORT, UNKNOWN_SESSION, BAD_HANDSHAKE_METHOD, BAD_REQUEST, FORBIDDEN, UNSUPPORTED_VERSION = range(6)
#: The codes and words of the reference implementation.
MESSAGES = (
    "Transport unknown",
    "Session ID unknown",
    "Bad handshake method",
    "Bad request",
    "Forbidden",
    "Unsupported protocol version",
)
#: Answers of this many bytes are compressed: of fewer it is not worth it, of more it would hold up everybody else.
COMPRESSED_FROM, COMPRESSED_TO = 1024, 65_536

Answer = dict[str, Any]


class Query:
    """What a request's query says; of a parameter that is there twice the first."""

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


def error(code: int, detail: str | None = None) -> Answer:
    """The answer 400 with the reference implementation's code."""
    message = MESSAGES[code] if detail is None else f"{MESSAGES[code]}: {detail}"
    return {
        "status": "400 BAD REQUEST",
        "headers": [("Content-Type", "application/json")],
        "response": json.dumps({"code": code, "message": message}, separators=(",", ":")).encode(),
    }


def ok(payload: bytes | None = None) -> Answer:
    """The answer to a poll with its payload, or to a POST."""
    headers = [("Content-Type", "text/plain; charset=UTF-8"), ("Cache-Control", "no-store")]
    return {"status": "200 OK", "headers": headers, "response": b"ok" if payload is None else payload}


def compressed(environ: dict[str, Any], answer: Answer) -> None:
    """Compress the answer with gzip where the client takes it."""
    body = answer["response"]
    offers = [offer.split(";")[0].strip() for offer in environ.get("HTTP_ACCEPT_ENCODING", "").split(",")]
    if COMPRESSED_FROM <= len(body) <= COMPRESSED_TO and "gzip" in offers:
        packer = zlib.compressobj(1, wbits=31)
        answer["response"] = packer.compress(body) + packer.flush()
        answer["headers"] += [("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding")]


def complete_headers(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """``headers`` without those that only an attacker can have made: some repeat what the client sent."""
    return [(name, value) for name, value in headers if value.isascii() and value.isprintable()]


Fingerprint = tuple[bytes | None, bytes | None]


def fingerprint(environ: dict[str, Any]) -> Fingerprint:
    """What identifies a client in each of its requests: Authorization, and the application's session cookie.

    As digests: they are kept for the connection's life. None for what is not there.
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
    """Whether a request may be of the client whose handshake showed ``kept``.

    The session cookie must come again, where there was one. Another Authorization is another client, but none may be
    the same: python-engineio's client sends it with the handshake only, and browsers do not with a WebSocket. Who
    showed nothing then may show something now.
    """
    (authorization, cookie), (shown_authorization, shown_cookie) = kept, shown
    both = authorization is not None and shown_authorization is not None
    if both and not hmac.compare_digest(authorization or b"", shown_authorization or b""):
        return False
    return cookie is None or (shown_cookie is not None and hmac.compare_digest(cookie, shown_cookie))


def _digest(text: str | None) -> bytes | None:
    return hashlib.sha256(text.encode()).digest() if text else None
