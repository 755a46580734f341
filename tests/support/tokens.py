"""Valid and hostile tokens, and a web server for keys."""

import base64
import functools
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

Result = TypeVar("Result")

SECRET = "a secret of the tests, and one of more than 64 bytes: 0123456789abcdef"


_USUAL = {"rsa": "RS256", "ec": "ES256", "ed": "EdDSA"}


class SigningKey:
    """A private key of the kind ``rsa``, ``ec`` or ``ed``, with its ``kid``."""

    def __init__(self, kind: str = "rsa", kid: str | None = None) -> None:
        self.algorithm = _USUAL[kind]
        self.kid = kid
        self._kind = kind

    @functools.cached_property
    def private(self) -> Any:
        """The private key. It is made when it is needed first: modules have keys, and are collected by each process."""
        if self._kind == "rsa":
            return rsa.generate_private_key(65537, 2048)
        if self._kind == "ec":
            return ec.generate_private_key(ec.SECP256R1())
        return ed25519.Ed25519PrivateKey.generate()

    @property
    def pem(self) -> str:
        """The public key in PEM format."""
        encoded: bytes = self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return encoded.decode()

    @property
    def jwk(self) -> dict[str, Any]:
        """The public key as a JWK."""
        algorithm = jwt.get_algorithm_by_name(self.algorithm)
        found = dict(json.loads(algorithm.to_jwk(self.private.public_key())), use="sig", alg=self.algorithm)
        return found if self.kid is None else found | {"kid": self.kid}

    def sign(self, headers: Mapping[str, Any] | None = None, **claims: Any) -> str:
        headers = {**({} if self.kid is None else {"kid": self.kid}), **(headers or {})}
        return jwt.encode(complete(claims), self.private, self.algorithm, headers=headers)


def complete(claims: Mapping[str, Any]) -> dict[str, Any]:
    """Add sub, and exp in a day, to ``claims``. Claims that are None are removed."""
    whole = {"sub": "somebody", "exp": int(time.time()) + 86_400} | dict(claims)
    return {name: value for name, value in whole.items() if value is not None}


def mint(
    headers: Mapping[str, Any] | None = None, algorithm: str = "HS256", secret: str = SECRET, **claims: Any
) -> str:
    """Return a token signed with the tests' secret."""
    return jwt.encode(complete(claims), secret, algorithm, headers=None if headers is None else dict(headers))


def ending_soon(attempt: Callable[[int], Result | None]) -> Result:
    """Call ``attempt`` with the `exp` of a token whose end the test waits for, until it returns a result.

    None says that the token had expired before the server got it, as on a busy machine: the next one lives longer.
    """
    for seconds in (3, 10, 40):
        result = attempt(int(time.time()) + seconds)
        if result is not None:
            return result
    raise AssertionError(f"a token of {seconds} s is refused")


def by_hand(header: object, claims: object, sign: Callable[[bytes], bytes] = lambda text: b"") -> str:
    """Return a token that no library would create."""
    signed = f"{_part(header)}.{_part(claims)}"
    return f"{signed}.{base64.urlsafe_b64encode(sign(signed.encode())).rstrip(b'=').decode()}"


def forge(claims: object, secret: str = SECRET) -> str:
    """Return a token signed with HS256, with claims that no library would sign."""
    return by_hand({"alg": "HS256"}, claims, lambda text: hmac.digest(secret.encode(), text, "sha256"))


def _part(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


class KeyServer:
    """Serves a JWK set whose keys can be changed, and counts the requests."""

    def __init__(self, *keys: SigningKey) -> None:
        self.keys = list(keys)
        self.fetched = 0
        self.status = 200
        self.body: str | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.fetched += 1
                body = (outer.body or json.dumps({"keys": [key.jwk for key in outer.keys]})).encode()
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/.well-known/jwks.json"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


#: One for all hostile tokens: the modules that have them are collected by each process.
_UNKNOWN = SigningKey("rsa")


def hostile_tokens(secret: str = SECRET) -> Iterator[tuple[str, object]]:
    """Yield (name, token). A server that accepts HS256 with ``secret`` must refuse each token."""
    now = int(time.time())
    good = mint(secret=secret)
    header, claims, signature = good.split(".")
    yield "not a string", 7
    yield "an object", {"token": good}
    yield "empty", ""
    yield "garbage", "abc"
    yield "dots", "..."
    yield "not ASCII", "ünïcödé.ünïcödé.ünïcödé"
    yield "NUL", "\0"
    yield "two parts", f"{header}.{claims}"
    yield "four parts", f"{good}.{signature}"
    yield "no signature", f"{header}.{claims}."
    yield "another's signature", f"{header}.{claims}.{mint(sub='x', secret=secret).split('.')[2]}"
    yield "changed claims", f"{header}.{_part({'sub': 'root', 'exp': now + 1_000_000})}.{signature}"
    yield "another secret", mint(secret="x" * 64)
    yield "expired", mint(secret=secret, exp=now - 60)
    yield "expired long ago", mint(secret=secret, exp=0)
    yield "negative exp", mint(secret=secret, exp=-1)
    yield "not yet valid", mint(secret=secret, nbf=now + 1_000_000)
    yield "issued in the future", mint(secret=secret, iat=now + 1_000_000)
    yield "no exp", mint(secret=secret, exp=None)
    yield "exp is text", mint(secret=secret, exp="tomorrow")
    yield "exp is digits", forge({"sub": "x", "exp": str(now + 1000)}, secret)
    yield "exp is true", forge({"sub": "x", "exp": True}, secret)
    yield "nbf is text", forge({"sub": "x", "exp": now + 1000, "nbf": "0"}, secret)
    yield "iss is an object", forge({"sub": "x", "exp": now + 1000, "iss": {"us": 1}}, secret)
    yield "sub appears twice", forge(f'{{"sub":"x","exp":{now + 1000},"sub":"y"}}', secret)
    yield "exp is a list", mint(secret=secret, exp=[now + 1_000_000])
    yield "exp is infinite", mint(secret=secret, exp=float("inf"))
    yield "exp is NaN", mint(secret=secret, exp=float("nan"))
    yield "exp is beyond year 9999", mint(secret=secret, exp=10**18)
    yield "sub is a lone surrogate", mint(secret=secret, sub="\ud800")
    yield "sub is a number", mint(secret=secret, sub=7)
    yield "another algorithm of the same secret", mint(secret=secret, algorithm="HS512")
    yield "alg none", by_hand({"alg": "none", "typ": "JWT"}, complete({}))
    yield "alg NONE", by_hand({"alg": "NONE"}, complete({}))
    yield "alg null", by_hand({"alg": None}, complete({}))
    yield "alg is a list", by_hand({"alg": ["HS256"]}, complete({}))
    yield "no alg", by_hand({"typ": "JWT"}, complete({}))
    yield "crit", mint({"crit": ["exp"], "exp": 1}, secret=secret)
    yield "crit with a known extension", mint({"crit": ["b64"], "b64": True}, secret=secret)
    yield "empty crit", mint({"crit": []}, secret=secret)
    yield "claims are a list", forge([1], secret)
    yield "claims are deep", forge('{"exp":99999999999,"x":' + "[" * 3000 + "]" * 3000 + "}", secret)
    yield "header is a list", by_hand([], complete({}))
    yield "header is deep", by_hand('{"alg":"HS256","x":' + "[" * 5000 + "]" * 5000 + "}", complete({}))
    yield "header is not JSON", by_hand("abc", complete({}))
    yield "kid is an object", by_hand({"alg": "HS256", "kid": {"a": 1}}, complete({}))
    yield "one megabyte", mint(secret=secret, pad="x" * 750_000)
    yield "one megabyte without parts", "a" * 1_000_000
    yield "signed with a private key", _UNKNOWN.sign()
