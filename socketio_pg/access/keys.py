"""Public keys for verifying tokens: one key from PEM, or a JWK set (RFC 7517) that is fetched again periodically."""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from socketio_pg.core import green
from socketio_pg.core.errors import AuthenticationUnavailableError, ConfigurationError, UnauthorizedError

logger = logging.getLogger("socketio_pg.keys")

_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
#: All algorithms with public keys (RFC 7518, section 3.1; RFC 8037).
PUBLIC_KEY_ALGORITHMS = (*_RSA, *_CURVES.values(), "EdDSA")
#: Shorter keys are no longer secure (NIST SP 800-131A).
MIN_RSA_BITS = 2048

PublicKey: TypeAlias = Any  # one of the classes in algorithms_of()


def algorithms_of(key: PublicKey) -> tuple[str, ...]:
    """Return the algorithms that ``key`` supports, the usual one first; none if it is not a public key."""
    if isinstance(key, rsa.RSAPublicKey):
        return _RSA if key.key_size >= MIN_RSA_BITS else ()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return (_CURVES[key.curve.name],) if key.curve.name in _CURVES else ()
    return ("EdDSA",) if isinstance(key, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)) else ()


def load_public_key(pem: str) -> PublicKey:
    """Return the public key in ``pem``, a key or a certificate. Raises :class:`ConfigurationError`."""
    try:
        if "BEGIN CERTIFICATE" in pem:
            key: PublicKey = x509.load_pem_x509_certificate(pem.encode()).public_key()
        else:
            key = load_pem_public_key(pem.encode())
    except Exception:  # cryptography raises many types, depending on OpenSSL's error
        raise ConfigurationError("JWT_PUBLIC_KEY cannot be read: it is not a public key in PEM format.") from None
    if not algorithms_of(key):
        raise ConfigurationError(
            f"JWT_PUBLIC_KEY must be RSA of at least {MIN_RSA_BITS} bits, ECDSA on P-256, P-384 or P-521, or Ed25519."
        )
    return key


@dataclass(frozen=True, slots=True)
class _Key:
    id: object
    algorithms: tuple[str, ...]
    key: PublicKey


def parse_key_set(text: str | bytes) -> list[_Key]:
    """Return the usable keys of a JWK set, without symmetric ones. Raises ValueError if ``text`` is not a JWK set."""
    found = json.loads(text)
    entries = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise ValueError("not a JWK set")
    keys = []
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig" or "verify" not in _operations(entry):
            continue
        try:
            key = jwt.PyJWK(entry)
        except Exception:  # PyJWTError for an unknown key type, other types for malformed keys
            continue
        algorithms = algorithms_of(key.key)
        if "alg" in entry:
            algorithms = tuple(algorithm for algorithm in algorithms if algorithm == entry["alg"])
        if algorithms:
            keys.append(_Key(entry.get("kid"), algorithms, key.key))
    return keys


def _operations(entry: dict[str, Any]) -> Sequence[str]:
    operations = entry.get("key_ops", ("verify",))
    return operations if isinstance(operations, (list, tuple)) else ()


class KeySet:
    """A JWK set at ``location``, a URL or the path of a file, which is read again after ``cache_seconds``.

    It is also read again when a token names a key that is not in the set, but at most once every :attr:`min_interval`
    seconds: untrusted clients can send such tokens.
    """

    #: Seconds for fetching the set, and its maximum size in bytes.
    timeout = 5.0
    max_bytes = 1_000_000
    #: Seconds between two attempts, after a failure or when a token names an unknown key.
    min_interval = 5.0
    #: Seconds for which expired keys are still used when they cannot be fetched again.
    max_stale = 3600.0

    def __init__(self, location: str, cache_seconds: float) -> None:
        self.location = location
        self._cache_seconds = cache_seconds
        self._keys: list[_Key] | None = None
        self._fetched = self._attempted = float("-inf")
        self._fetches = 0
        #: Why the last attempt failed, for the operator.
        self._failure: str | None = None
        self._lock = green.Lock()

    def prepare(self) -> None:
        """Fetch the set and log the result."""
        self._refresh()

    def find(self, key_id: object, algorithm: str) -> PublicKey:
        """Return a token's key: the one with its ``kid``, or without one the only key for ``algorithm``. May wait.

        Raises :class:`UnauthorizedError` when there is no such key, :class:`AuthenticationUnavailableError` when that
        cannot be determined.
        """
        fetches = self._fetches
        if time.monotonic() - self._fetched >= self._cache_seconds:
            self._refresh()
        found = self._match(key_id, algorithm)
        may_be_new = isinstance(key_id, str) and not any(key.id == key_id for key in self._keys or ())
        if may_be_new and self._fetches == fetches:
            self._refresh()
            found = self._match(key_id, algorithm)
        if self._keys is None or time.monotonic() - self._fetched > self._cache_seconds + self.max_stale:
            raise AuthenticationUnavailableError(
                "tokens cannot be verified at the moment: the keys cannot be fetched", detail=self._failure
            )
        if not found and may_be_new and self._fetches == fetches:
            raise AuthenticationUnavailableError("the token's key may be new: try again in a few seconds")
        if not found:
            raise UnauthorizedError("the token's key is not known")
        if len(found) > 1:
            raise UnauthorizedError("the token does not name the key that it was signed with")
        return found[0].key

    def _match(self, key_id: object, algorithm: str) -> list[_Key]:
        keys = [key for key in self._keys or () if algorithm in key.algorithms]
        return keys if key_id is None else [key for key in keys if key.id == key_id][:1]

    def _refresh(self) -> None:
        wanted = time.monotonic()
        with self._lock:
            if self._attempted >= wanted:
                return  # another green thread fetched the set while this one waited
            now = time.monotonic()
            expired = self._fetched == self._attempted and now - self._fetched >= self._cache_seconds
            if not expired and now - self._attempted < self.min_interval:
                return
            try:
                keys = parse_key_set(self._read())
            except Exception as error:  # of any type: the present keys stay in use until the next attempt
                self._failure = f"the keys at {self.location} cannot be fetched: {error}"
                logger.warning("%s", self._failure)
                self._attempted = time.monotonic()
                return
            if self._keys is None or [key.id for key in keys] != [key.id for key in self._keys]:
                logger.info("fetched %d keys from %s", len(keys), self.location)
            self._keys = keys
            self._fetches += 1
            self._fetched = self._attempted = time.monotonic()

    def _read(self) -> bytes:
        if self.location.startswith(("http://", "https://")):
            return green.fetch(self.location, self.timeout, self.max_bytes)
        return Path(self.location).expanduser().read_bytes()
