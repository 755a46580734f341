"""Public keys that tokens are verified with: one from PEM, or a JWK set that is fetched and changes (RFC 7517)."""

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
#: NIST SP 800-131A: shorter ones are not secure any more.
LEAST_RSA_BITS = 2048

PublicKey: TypeAlias = Any  # one of the classes in algorithms_of()


def algorithms_of(key: PublicKey) -> tuple[str, ...]:
    """The algorithms that ``key`` may verify, the usual one first; none for what is no public key."""
    if isinstance(key, rsa.RSAPublicKey):
        return _RSA if key.key_size >= LEAST_RSA_BITS else ()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return (_CURVES[key.curve.name],) if key.curve.name in _CURVES else ()
    return ("EdDSA",) if isinstance(key, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)) else ()


def load_public_key(pem: str) -> PublicKey:
    """The public key in ``pem``, a key or a certificate. Raises :class:`ConfigurationError`."""
    try:
        if "BEGIN CERTIFICATE" in pem:
            key: PublicKey = x509.load_pem_x509_certificate(pem.encode()).public_key()
        else:
            key = load_pem_public_key(pem.encode())
    except Exception:  # cryptography raises what OpenSSL makes of it
        raise ConfigurationError("JWT_PUBLIC_KEY cannot be read: it is no public key in PEM.") from None
    if not algorithms_of(key):
        raise ConfigurationError(
            f"JWT_PUBLIC_KEY must be RSA of at least {LEAST_RSA_BITS} bits, ECDSA on P-256, P-384 or P-521, or Ed25519."
        )
    return key


@dataclass(frozen=True, slots=True)
class _Key:
    id: object
    algorithms: tuple[str, ...]
    key: PublicKey


def parse_key_set(text: str | bytes) -> list[_Key]:
    """The usable keys of a JWK set; others, also symmetric ones, are left out. Raises ValueError when it is none."""
    found = json.loads(text)
    entries = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise ValueError("this is no JWK set")
    keys = []
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig" or "verify" not in _operations(entry):
            continue
        try:
            key = jwt.PyJWK(entry)
        except Exception:  # PyJWTError for a kind that is not known, and others for what is no key at all
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
    """A JWK set at ``location``, an address or the path of a file, which is read again after ``cache_seconds``.

    It is also read again when a token names a key that is not in it, but not more often than every
    :attr:`least_interval`: anybody can send such tokens.
    """

    #: Seconds for fetching it, and bytes that it may have.
    timeout = 5.0
    most_bytes = 1_000_000
    #: Seconds between two attempts when one failed, or was for a key that nobody may have.
    least_interval = 5.0
    #: Seconds for which keys are still used when they cannot be fetched again.
    most_stale = 3600.0

    def __init__(self, location: str, cache_seconds: float) -> None:
        self.location = location
        self._cache_seconds = cache_seconds
        self._keys: list[_Key] | None = None
        self._fetched = self._attempted = float("-inf")
        self._fetches = 0
        self._lock = green.Lock()

    def prepare(self) -> None:
        """Fetch it, and log what came of it."""
        self._refresh()

    def find(self, key_id: object, algorithm: str) -> PublicKey:
        """The key of a token: the one with its ``kid``, or without that the only one for ``algorithm``. May wait.

        Raises :class:`UnauthorizedError` when there is none, :class:`AuthenticationUnavailableError` when there is no
        knowing.
        """
        fetches = self._fetches
        if time.monotonic() - self._fetched >= self._cache_seconds:
            self._refresh()
        found = self._match(key_id, algorithm)
        may_be_new = isinstance(key_id, str) and not any(key.id == key_id for key in self._keys or ())
        if may_be_new and self._fetches == fetches:
            self._refresh()
            found = self._match(key_id, algorithm)
        if self._keys is None or time.monotonic() - self._fetched > self._cache_seconds + self.most_stale:
            raise AuthenticationUnavailableError("tokens cannot be verified at the moment: the keys cannot be fetched")
        if not found and may_be_new and self._fetches == fetches:
            raise AuthenticationUnavailableError("the token's key may be a new one: try again in some seconds")
        if not found:
            raise UnauthorizedError("the token's key is not known")
        if len(found) > 1:
            raise UnauthorizedError("the token does not say which key it was signed with")
        return found[0].key

    def _match(self, key_id: object, algorithm: str) -> list[_Key]:
        keys = [key for key in self._keys or () if algorithm in key.algorithms]
        return keys if key_id is None else [key for key in keys if key.id == key_id][:1]

    def _refresh(self) -> None:
        wanted = time.monotonic()
        with self._lock:
            if self._attempted >= wanted:
                return  # somebody else has, while we waited
            now = time.monotonic()
            expired = self._fetched == self._attempted and now - self._fetched >= self._cache_seconds
            if not expired and now - self._attempted < self.least_interval:
                return
            try:
                keys = parse_key_set(self._read())
            except Exception as error:  # whatever comes from there: what we have goes on, and it is not asked at once
                logger.warning("the keys at %s cannot be fetched: %s", self.location, error)
                self._attempted = time.monotonic()
                return
            if self._keys is None or [key.id for key in keys] != [key.id for key in self._keys]:
                logger.info("%d keys at %s", len(keys), self.location)
            self._keys = keys
            self._fetches += 1
            self._fetched = self._attempted = time.monotonic()

    def _read(self) -> bytes:
        if self.location.startswith(("http://", "https://")):
            return green.fetch(self.location, self.timeout, self.most_bytes)
        return Path(self.location).expanduser().read_bytes()
