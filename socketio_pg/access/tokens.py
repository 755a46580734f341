"""JWT → :class:`Claims`: who a client is. What it may do is decided in `permissions`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import jwt

from socketio_pg.access.keys import PUBLIC_KEY_ALGORITHMS, KeySet, algorithms_of, load_public_key
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import ConfigurationError, UnauthorizedError

#: HMAC algorithms, and the least bytes of their secrets (RFC 7518, section 3.2).
HMAC_ALGORITHMS = {"HS256": 32, "HS384": 48, "HS512": 64}
#: What a JWK set's tokens may be signed with unless JWT_ALGORITHMS says otherwise.
JWKS_ALGORITHMS = ("RS256", "ES256", "EdDSA")
#: Bytes of a token at most: what HTTP servers take as a header, twice.
MAX_TOKEN_BYTES = 16_384

_YEAR_10000 = 253_402_300_800


@dataclass(frozen=True, eq=False, slots=True)
class Claims:
    """Who a client is: the claims of its token, or what an application's own login knows.

    ``claims`` is a JSON object with RFC 7519's names where they fit: ``sub`` (a string) is the client's name on the
    wire, ``exp`` (seconds since 1970) when it ends, never without it. Raises ValueError or TypeError for anything else.
    """

    claims: Mapping[str, Any]
    #: The claims as compact JSON in ASCII: what the database is given, and what two equal identities have in common.
    text: str = field(init=False)
    #: When it ends, in seconds since 1970; None for never.
    expires_at: float | None = field(init=False)

    def __post_init__(self) -> None:
        text = json.dumps(dict(self.claims), allow_nan=False, ensure_ascii=True, separators=(",", ":"))
        subject = self.claims.get("sub")
        if isinstance(subject, str):
            subject.encode()  # a lone surrogate can be told to nobody
        expires_at = self.claims.get("exp")
        if expires_at is not None:
            expires_at = float(int(expires_at))
            if not 0 <= expires_at < _YEAR_10000:
                raise ValueError("exp is out of range")
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "expires_at", expires_at)

    @property
    def subject(self) -> str | None:
        """The client's name: ``sub``."""
        subject = self.claims.get("sub")
        return subject if isinstance(subject, str) else None

    def to_wire(self) -> dict[str, str | None]:
        """``client`` and ``expires_at`` (ISO 8601, UTC) as in `server_hello` and `authenticated`."""
        expires_at = None
        if self.expires_at is not None:
            expires_at = datetime.fromtimestamp(self.expires_at, timezone.utc).isoformat(timespec="seconds")
        return {"client": self.subject, "expires_at": expires_at}


#: A client without any, on the wire.
ANONYMOUS: dict[str, str | None] = {"client": None, "expires_at": None}


class TokenVerifier:
    """Verifies tokens with the keys and algorithms of ``settings``, and with no others.

    The algorithm decides which key is tried: a secret is never used for a public key's algorithm, nor the other way
    round. Raises :class:`ConfigurationError`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._secret = settings.jwt_secret
        self._public_key = None if settings.jwt_public_key is None else load_public_key(settings.jwt_public_key)
        self._key_set = None if settings.jwks_url is None else KeySet(settings.jwks_url, settings.jwks_cache_seconds)
        if self._public_key is not None and self._key_set is not None:
            raise ConfigurationError("JWT_PUBLIC_KEY and JWKS_URL are two places for public keys: set one of them.")
        #: The algorithms that are accepted.
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
                allowed = ", ".join(sorted(usable)) or "none: there is no key"
                raise ConfigurationError(
                    f"JWT_ALGORITHMS has {algorithm!r}; with the keys that are configured, allowed: {allowed}."
                )
            if self._secret is not None and len(self._secret.encode()) < HMAC_ALGORITHMS.get(algorithm, 0):
                raise ConfigurationError(
                    f"JWT_SECRET has {len(self._secret.encode())} bytes; {algorithm} needs at least "
                    f"{HMAC_ALGORITHMS[algorithm]}, at random: openssl rand -hex 32."
                )
        if self._secret is not None and "-----BEGIN" in self._secret:
            raise ConfigurationError("JWT_SECRET holds a key in PEM: a public key belongs in JWT_PUBLIC_KEY.")

    def prepare(self) -> None:
        """Fetch the keys, where they have to be, so that what is wrong shows at the start. May wait."""
        if self._key_set is not None:
            self._key_set.prepare()

    def verify(self, token: object) -> Claims:
        """The claims of ``token``. May wait for keys.

        Raises :class:`UnauthorizedError` for everything that is not a token in order, for whatever reason, and
        :class:`AuthenticationUnavailableError` when the keys cannot be had.
        """
        if not isinstance(token, str) or not token:
            raise UnauthorizedError("token must be a string that is not empty")
        if len(token) > MAX_TOKEN_BYTES:
            raise UnauthorizedError(f"token has {len(token)} bytes; at most {MAX_TOKEN_BYTES} are allowed")
        try:
            header = jwt.get_unverified_header(token)
        except Exception:  # whatever a stranger's bytes make the libraries below stumble over
            raise UnauthorizedError("the token is not a JWT in order") from None
        if "crit" in header:  # RFC 7515, section 4.1.11: we understand none
            raise UnauthorizedError("the token has extensions that must be understood, and are not")
        algorithm = header.get("alg")
        if algorithm not in self.algorithms:
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
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=settings.jwt_issuer,
                audience=settings.jwt_audience or None,
                leeway=settings.jwt_leeway,
                options={"require": ["exp"], "verify_aud": bool(settings.jwt_audience)},
            )
            return Claims(claims)
        except Exception as error:  # as above: jwt.PyJWTError for what it expects, and there is more than that
            raise UnauthorizedError(_REFUSALS.get(type(error), "the token is not valid")) from None


#: What may be said about a token that was refused, by the library's error. Nothing of the token is in it.
_REFUSALS: dict[type[Exception], str] = {
    jwt.ExpiredSignatureError: "the token has expired",
    jwt.ImmatureSignatureError: "the token is not valid yet",
    jwt.InvalidAudienceError: "the token is for another audience",
    jwt.InvalidIssuerError: "the token comes from another issuer",
    jwt.InvalidSignatureError: "the token's signature is wrong",
    jwt.MissingRequiredClaimError: "the token lacks exp, or iss or aud where they are configured",
    jwt.exceptions.InvalidSubjectError: "the token's sub is not a string",
}


def bearer_token(header: str | None) -> str | None:
    """The token of an ``Authorization`` header (RFC 6750, section 2.1), or None."""
    scheme, _, token = (header or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None
