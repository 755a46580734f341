"""The command ``token``: creates a JWT for development."""

from typing import Any

import click
import orjson

from socketio_pg.access.signing import completed, sign, signing_key
from socketio_pg.cli.command import as_seconds, examples
from socketio_pg.cli.terminal import tell
from socketio_pg.core import loading


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
    key, algorithm = signing_key(settings, secret)
    claims: dict[str, Any] = {"sub": sub}
    if role is not None:
        claims[settings.jwt_role_claim] = role
    for name, patterns in (("subscribe", subscribe), ("publish", publish)):
        if patterns:
            claims[name] = list(patterns)
    claims |= dict(_parse_claim(text) for text in claim)
    signed = sign(completed(settings, claims, expires), key, algorithm)
    tell("For development only: anyone with this token can act as this client until it expires.", error=True)
    click.echo(signed)


def _parse_claim(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    try:
        if name and separator:
            return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        pass
    raise click.BadParameter(f"{text!r}; allowed: KEY=JSON, like tenant='\"acme\"' or admin=true", param_hint="--claim")
