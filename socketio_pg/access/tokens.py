"""Verifies JSON Web Tokens and returns their :class:`Claims`. `permissions` decides what a client may do."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import jwt
from jwt.utils import base64url_decode

from socketio_pg.access.keys import PUBLIC_KEY_ALGORITHMS, KeySet, algorithms_of, load_public_key
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import ConfigurationError, UnauthorizedError
from socketio_pg.core.messages import parse_leniently

#: HMAC algorithms and the minimum length of their secrets in bytes (RFC 7518, section 3.2).
HMAC_ALGORITHMS = {"HS256": 32, "HS384": 48, "HS512": 64}
#: The accepted algorithms of tokens that are verified with a JWK set, unless JWT_ALGORITHMS is set.
JWKS_ALGORITHMS = ("RS256", "ES256", "EdDSA")
#: The maximum length of a token: twice what HTTP servers usually accept as a header.
MAX_TOKEN_BYTES = 16_384

_YEAR_10000 = 253_402_300_800


class InvalidClaimError(ValueError):
    """A claim has a value of the wrong type, or one that is out of range. The message begins with the claim's name."""


def check_registered(claims: Mapping[str, Any]) -> None:
    """Check the types of the registered claims (RFC 7519, section 4.1). Raises :class:`InvalidClaimError`.

    JSON's null is a wrong type, and so is a boolean where a number is required.
    """
    for name in ("iss", "sub", "jti"):
        if name in claims:
            _check_text(name, claims[name])
    audience = claims.get("aud", "")
    for one in audience if isinstance(audience, list) else [audience]:
        if not isinstance(one, str):
            raise InvalidClaimError("aud is neither a string nor a list of strings")
        _check_text("aud", one)
    for name in ("exp", "nbf", "iat"):
        if name in claims:
            _check_date(name, claims[name])


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InvalidClaimError(f"{name} is not a string")
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate, which cannot be sent to clients or to the database
        raise InvalidClaimError(f"{name} is not Unicode text") from None


def _check_date(name: str, value: object) -> None:
    """Check a NumericDate: a JSON number of seconds since 1970 (RFC 7519, section 2)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidClaimError(f"{name} is not a number")
    # Python's parser reads NaN, Infinity and 1e400. A time after the year 9999 cannot be shown as ISO 8601.
    if (isinstance(value, float) and not math.isfinite(value)) or value < 0 or (name == "exp" and value >= _YEAR_10000):
        raise InvalidClaimError(f"{name} is out of range")


@dataclass(frozen=True, eq=False, slots=True)
class Claims:
    """The identity of a client: the claims of its token, or of the application's own login.

    ``claims`` is a JSON object with the names of RFC 7519: ``sub`` (a string) is the client's name on the wire, ``exp``
    (a number, seconds since 1970) is its expiry; without it the identity never expires. A registered claim that is
    None counts as missing. Raises ValueError (:class:`InvalidClaimError`) or TypeError for anything else.
    """

    claims: Mapping[str, Any]
    #: The claims as compact JSON in ASCII: passed to the database, and equal for equal identities.
    text: str = field(init=False)
    #: When the identity expires, in seconds since 1970; None: never.
    expires_at: float | None = field(init=False)

    def __post_init__(self) -> None:
        check_registered({name: value for name, value in self.claims.items() if value is not None})
        text = json.dumps(dict(self.claims), allow_nan=False, ensure_ascii=True, separators=(",", ":"))
        expires_at = self.claims.get("exp")
        if expires_at is not None:
            expires_at = float(int(expires_at))
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "expires_at", expires_at)

    @property
    def subject(self) -> str | None:
        """The client's name: ``sub``."""
        subject = self.claims.get("sub")
        return subject if isinstance(subject, str) else None

    def to_wire(self) -> dict[str, str | None]:
        """Return ``client`` and ``expires_at`` (ISO 8601, UTC) as in `server_hello` and `authenticated`."""
        expires_at = None
        if self.expires_at is not None:
            expires_at = datetime.fromtimestamp(self.expires_at, timezone.utc).isoformat(timespec="seconds")
        return {"client": self.subject, "expires_at": expires_at}


#: :meth:`Claims.to_wire` of an anonymous client.
ANONYMOUS: dict[str, str | None] = {"client": None, "expires_at": None}


class _Decoder(jwt.PyJWT):
    """PyJWT with a strict payload: no name appears twice, and each registered claim has its type."""

    def _decode_payload(self, decoded: dict[str, Any]) -> dict[str, Any]:
        # PyJWT documents this method for subclasses. Its own checks accept numbers that are strings or booleans.
        claims = _strict_object(decoded["payload"])
        check_registered(claims)
        return claims


def _strict_object(text: bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError, also when a name appears twice at any depth (RFC 7519, section 4)."""
    value = parse_leniently(text.decode(), object_pairs_hook=_unique)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name appears twice")
    return value


class TokenVerifier:
    """Verifies tokens with the keys and algorithms of ``settings`` only.

    The algorithm determines the key: a secret is never used with an algorithm for public keys, nor vice versa.
    Raises :class:`ConfigurationError`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._decoder = _Decoder()
        self._secret = settings.jwt_secret
        self._public_key = None if settings.jwt_public_key is None else load_public_key(settings.jwt_public_key)
        self._key_set = None if settings.jwks_url is None else KeySet(settings.jwks_url, settings.jwks_cache_seconds)
        if self._public_key is not None and self._key_set is not None:
            raise ConfigurationError("JWT_PUBLIC_KEY and JWKS_URL are both set: set only one of them.")
        #: The accepted algorithms.
        self.algorithms = settings.jwt_algorithms or self._default_algorithms()
        self._check_algorithms()

    def _default_algorithms(self) -> tuple[str, ...]:
        algorithms: tuple[str, ...] = ()
        if self._secret is not None:
            algorithms += ("HS256",)
        if self._public_key is not None:
            algorithms += algorithms_of(self._public_key)[:1]
        if self._key_set is not None:
            algorithms += JWKS_ALGORITHMS
        return algorithms

    def _check_algorithms(self) -> None:
        usable = set() if self._secret is None else set(HMAC_ALGORITHMS)
        if self._public_key is not None:
            usable |= set(algorithms_of(self._public_key))
        if self._key_set is not None:
            usable |= set(PUBLIC_KEY_ALGORITHMS)
        for algorithm in self.algorithms:
            if algorithm not in usable:
                allowed = ", ".join(sorted(usable)) or "none, because there is no key"
                raise ConfigurationError(
                    f"JWT_ALGORITHMS has {algorithm!r}; allowed with the configured keys: {allowed}."
                )
            if self._secret is not None and len(self._secret.encode()) < HMAC_ALGORITHMS.get(algorithm, 0):
                raise ConfigurationError(
                    f"JWT_SECRET has {len(self._secret.encode())} bytes; {algorithm} needs at least "
                    f"{HMAC_ALGORITHMS[algorithm]} random bytes: openssl rand -hex 32."
                )
        if self._secret is not None and "-----BEGIN" in self._secret:
            raise ConfigurationError("JWT_SECRET holds a key in PEM format: a public key belongs in JWT_PUBLIC_KEY.")

    def prepare(self) -> None:
        """Fetch the keys if they come from JWKS_URL, so that problems show at the start. May wait."""
        if self._key_set is not None:
            self._key_set.prepare()

    def verify(self, token: object) -> Claims:
        """Return the claims of ``token``. May wait for keys.

        Raises :class:`UnauthorizedError` for an invalid token, and :class:`AuthenticationUnavailableError` when the
        keys cannot be fetched.
        """
        if not isinstance(token, str) or not token:
            raise UnauthorizedError("token must be a non-empty string")
        if len(token) > MAX_TOKEN_BYTES:
            raise UnauthorizedError(f"token has {len(token)} bytes; at most {MAX_TOKEN_BYTES} are allowed")
        try:
            jwt.get_unverified_header(token)
            header = _strict_object(base64url_decode(token.partition(".")[0]))
        except Exception:  # untrusted input: the libraries may raise any type
            raise UnauthorizedError("the token is not a valid JWT") from None
        if not isinstance(header.get("typ", ""), str):
            raise UnauthorizedError("the token is not a valid JWT")
        if "crit" in header:  # RFC 7515, section 4.1.11
            raise UnauthorizedError("the token has critical extensions, which are not supported")
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self.algorithms:
            raise UnauthorizedError("the token's algorithm is not accepted")
        return self._claims(token, algorithm, self._key(algorithm, header.get("kid")))

    def _key(self, algorithm: str, key_id: object) -> Any:
        if algorithm in HMAC_ALGORITHMS:
            return self._secret
        if self._key_set is not None:
            return self._key_set.find(key_id, algorithm)
        return self._public_key

    def _claims(self, token: str, algorithm: str, key: Any) -> Claims:
        settings = self._settings
        try:
            claims = self._decoder.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=settings.jwt_issuer,
                audience=settings.jwt_audience or None,
                leeway=settings.jwt_leeway,
                options={"require": ["exp"], "verify_aud": bool(settings.jwt_audience)},
            )
            self._check_own(claims)
            return Claims(claims)
        except InvalidClaimError as error:
            raise UnauthorizedError(f"the token's {error}") from None
        except Exception as error:  # as above: not only jwt.PyJWTError
            raise UnauthorizedError(_REFUSALS.get(type(error), "the token is not valid")) from None

    def _check_own(self, claims: Mapping[str, Any]) -> None:
        """Check the claims that AUTHORIZATION uses. Raises :class:`InvalidClaimError`."""
        settings = self._settings
        role = settings.jwt_role_claim
        if settings.authorization == "rls" and role in claims:
            _check_text(role, claims[role])
        for name in ("subscribe", "publish") if settings.authorization == "claims" else ():
            patterns = claims.get(name, [])
            if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
                raise InvalidClaimError(f"{name} is not a list of strings")


#: The messages about refused tokens, by the library's error. None contains anything of the token.
_REFUSALS: dict[type[Exception], str] = {
    jwt.ExpiredSignatureError: "the token has expired",
    jwt.ImmatureSignatureError: "the token is not valid yet",
    jwt.InvalidAudienceError: "the token is for another audience",
    jwt.InvalidIssuerError: "the token comes from another issuer",
    jwt.InvalidSignatureError: "the token's signature is wrong",
    jwt.MissingRequiredClaimError: "the token lacks exp, or iss or aud where they are configured",
}


def bearer_token(header: str | None) -> str | None:
    """Return the token of an ``Authorization`` header (RFC 6750, section 2.1), or None."""
    scheme, _, token = (header or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None
