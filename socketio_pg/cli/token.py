"""The command ``token``: a JWT for development."""

import time
from typing import Any

import click
import jwt
import orjson

from socketio_pg.access.tokens import HMAC_ALGORITHMS
from socketio_pg.cli.command import as_seconds, examples
from socketio_pg.cli.terminal import say
from socketio_pg.core import config
from socketio_pg.core.errors import ConfigurationError


@click.command(
    epilog=examples(
        "socketio-pg token --sub alice",
        "socketio-pg token --sub alice --subscribe 'orders:*' --publish orders:7 --expires 15m",
        "socketio-pg token --role authenticated --claim 'tenant=\"acme\"'",
        "SOCKETIO_PG_TOKEN=$(socketio-pg token) socketio-pg listen orders --url http://127.0.0.1:3030",
    )
)
@click.option("--sub", default="developer", show_default=True, help="Who the client is.")
@click.option("--role", help="The role for AUTHORIZATION=rls, in the claim that JWT_ROLE_CLAIM names.")
@click.option("--subscribe", multiple=True, metavar="PATTERN", help="May subscribe here (AUTHORIZATION=claims).")
@click.option("--publish", multiple=True, metavar="PATTERN", help="May publish here (AUTHORIZATION=claims).")
@click.option(
    "--expires",
    callback=as_seconds,
    metavar="TIME",
    default="1h",
    show_default=True,
    help="90s, 15m, 1h, 7d.",
)
@click.option("--claim", multiple=True, metavar="KEY=JSON", help="Any further claim; repeatable.")
@click.option("--secret", help="Sign with this secret, and not with JWT_SECRET.")
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

    It is signed with JWT_SECRET; in production your login makes them. iss and aud are those of JWT_ISSUER and
    JWT_AUDIENCE.
    """
    settings = config.load()
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
    claims |= dict(_further(text) for text in claim)
    signed = jwt.encode(claims, key, algorithm)
    say("For development only: whoever has this token is this client until it expires.", error=True)
    click.echo(signed)


def _key(settings: config.Settings, secret: str | None) -> tuple[str, str]:
    """The secret, and the algorithm that a server accepts with it."""
    key = secret or settings.jwt_secret
    if key is None:
        public = settings.jwt_public_key or settings.jwks_url
        raise ConfigurationError(
            "only public keys are configured, with which nothing can be signed: your issuer makes the tokens."
            if public
            else "there is no secret to sign with: set JWT_SECRET (openssl rand -hex 32), or give --secret."
        )
    accepted = [name for name in settings.jwt_algorithms or ("HS256",) if name in HMAC_ALGORITHMS]
    if not accepted:
        raise ConfigurationError("JWT_ALGORITHMS has no algorithm for a secret, like HS256: no server would take it.")
    least = HMAC_ALGORITHMS[accepted[0]]
    if len(key.encode()) < least:
        raise ConfigurationError(f"the secret has {len(key.encode())} bytes; {accepted[0]} needs at least {least}.")
    return key, accepted[0]


def _further(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    try:
        if name and separator:
            return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        pass
    raise click.BadParameter(f"{text!r}; allowed: KEY=JSON, like tenant='\"acme\"' or admin=true", param_hint="--claim")
