"""Signs tokens for development, with the secret of a server. In production a login service does."""

import time
from collections.abc import Mapping
from typing import Any

import jwt

from socketio_pg.access.tokens import HMAC_ALGORITHMS
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import ConfigurationError, InvalidRequestError


def signing_key(settings: Settings, secret: str | None = None) -> tuple[str, str]:
    """Return the secret, by default JWT_SECRET, and an algorithm that a server accepts with it.

    Raises :class:`ConfigurationError` when there is none.
    """
    key = secret or settings.jwt_secret
    if key is None:
        public = settings.jwt_public_key or settings.jwks_url
        raise ConfigurationError(
            "only public keys are configured, which cannot sign: get tokens from your issuer."
            if public
            else "no secret to sign with: set JWT_SECRET (openssl rand -hex 32), or use --secret."
        )
    accepted = [name for name in settings.jwt_algorithms or ("HS256",) if name in HMAC_ALGORITHMS]
    if not accepted:
        raise ConfigurationError("JWT_ALGORITHMS has no HMAC algorithm like HS256: servers would reject the token.")
    min_bytes = HMAC_ALGORITHMS[accepted[0]]
    if len(key.encode()) < min_bytes:
        raise ConfigurationError(f"the secret has {len(key.encode())} bytes; {accepted[0]} needs at least {min_bytes}.")
    return key, accepted[0]


def standard_claims(settings: Settings) -> dict[str, Any]:
    """Return the claims that the server requires of each token, beside its time: ``iss`` and ``aud``."""
    claims: dict[str, Any] = {}
    if settings.jwt_issuer is not None:
        claims["iss"] = settings.jwt_issuer
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience[0]
    return claims


def check_standard(settings: Settings, claims: Mapping[str, Any]) -> None:
    """Return for claims whose ``iss`` and ``aud`` are missing, or those of this server.

    Raises :class:`InvalidRequestError`: others are of a service that shares the secret.
    """
    if settings.jwt_issuer is not None and claims.get("iss", settings.jwt_issuer) != settings.jwt_issuer:
        raise InvalidRequestError("claims: iss must be JWT_ISSUER")
    audience = claims.get("aud", [])
    named = audience if isinstance(audience, list) else [audience]
    if settings.jwt_audience and any(one not in settings.jwt_audience for one in named):
        raise InvalidRequestError("claims: aud must be of JWT_AUDIENCE")


def completed(settings: Settings, claims: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return the claims of a token that expires after ``seconds``, unless they say otherwise."""
    now = int(time.time())
    return {"iat": now, "exp": now + int(seconds)} | standard_claims(settings) | dict(claims)


def sign(claims: Mapping[str, Any], key: str, algorithm: str) -> str:
    """Return a token."""
    return jwt.encode(dict(claims), key, algorithm)
