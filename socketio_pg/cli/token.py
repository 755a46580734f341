"""The command ``token``: creates a JWT for development."""

import time
from typing import Any

import click
import jwt
import orjson

from socketio_pg.access.tokens import HMAC_ALGORITHMS
from socketio_pg.cli.command import as_seconds, examples
from socketio_pg.cli.terminal import tell
from socketio_pg.core import config, loading
from socketio_pg.core.errors import ConfigurationError


@click.command(
    epilog=examples(
        "socketio-pg token --sub alice",
        "socketio-pg token --sub alice --subscribe 'orders:*' --expires 15m",
        "socketio-pg token --role authenticated --claim 'tenant=\"acme\"'",
        "export SOCKETIO_PG_TOKEN=$(socketio-pg token)",
        "socketio-pg listen orders --url http://127.0.0.1:3030",
    )
)
@click.option("--sub", default="developer", show_default=True, help="The client's name.")
@click.option("--role", help="Database role for AUTHORIZATION=rls, in the claim of JWT_ROLE_CLAIM.")
@click.option("--subscribe", multiple=True, metavar="PATTERN", help="Allow subscribing (AUTHORIZATION=claims).")
@click.option("--publish", multiple=True, metavar="PATTERN", help="Allow publishing (AUTHORIZATION=claims).")
@click.option(
    "--expires",
    callback=as_seconds,
    metavar="TIME",
    default="1h",
    show_default=True,
    help="Lifetime: 90s, 15m, 1h, 7d.",
)
@click.option("--claim", multiple=True, metavar="KEY=JSON", help="Any other claim; repeatable.")
@click.option("--secret", help="Sign with this secret instead of JWT_SECRET.")
def token(
    sub: str,
    role: str | None,
    subscribe: tuple[str, ...],
    publish: tuple[str, ...],
    expires: float,
    claim: tuple[str, ...],
    secret: str | None,
) -> None:
    """Print a token for development.

    Signs it with JWT_SECRET; in production your login service creates tokens. iss and aud come from JWT_ISSUER and
    JWT_AUDIENCE.
    """
    settings = loading.load()
    key, algorithm = _key(settings, secret)
    now = int(time.time())
    claims: dict[str, Any] = {"sub": sub, "iat": now, "exp": now + int(expires)}
    if settings.jwt_issuer is not None:
        claims["iss"] = settings.jwt_issuer
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience[0]
    if role is not None:
        claims[settings.jwt_role_claim] = role
    for name, patterns in (("subscribe", subscribe), ("publish", publish)):
        if patterns:
            claims[name] = list(patterns)
    claims |= dict(_parse_claim(text) for text in claim)
    signed = jwt.encode(claims, key, algorithm)
    tell("For development only: anyone with this token can act as this client until it expires.", error=True)
    click.echo(signed)


def _key(settings: config.Settings, secret: str | None) -> tuple[str, str]:
    """Return the secret and an algorithm that a server accepts with it."""
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


def _parse_claim(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    try:
        if name and separator:
            return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        pass
    raise click.BadParameter(f"{text!r}; allowed: KEY=JSON, like tenant='\"acme\"' or admin=true", param_hint="--claim")
