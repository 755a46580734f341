"""The doctor's checks of what needs no database: settings, installed programs, this machine."""

import errno
import json
import logging
import resource
import shlex
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from flask import Flask

from socketio_pg.access.authentication import Authenticator
from socketio_pg.access.keys import KeySet, parse_key_set
from socketio_pg.access.permissions import Permissions
from socketio_pg.access.policies import Policies
from socketio_pg.cluster import select as cluster
from socketio_pg.cluster.redis import RedisCluster
from socketio_pg.core import green
from socketio_pg.core.config import SPARE_DESCRIPTORS, Settings, redact
from socketio_pg.core.errors import ConfigurationError
from socketio_pg.doctor.findings import Finding, error, ok, warning
from socketio_pg.postgres.database import Database

#: Different characters that a secret has at least which nobody could guess.
LEAST_VARIETY = 10
#: Seconds in which a server must answer.
SECONDS = 5.0


def configuration(settings: Settings) -> Iterator[Finding]:
    """Whether a server would start with these settings: what goes together, and whether keys are in order."""
    # What it warns of is found below.
    logger, nowhere = logging.getLogger("socketio_pg"), logging.NullHandler()
    logger.addHandler(nowhere)
    try:
        mode = Authenticator(settings, Flask("socketio_pg", static_folder=None)).mode
        # Nothing is asked of it.
        Permissions(settings, mode, Policies(Database("dbname=none"), 1.0))
        cluster.check(settings)
    except ConfigurationError as wrong:
        yield error("settings", wrong.message, "the server does not start with these settings: change them")
    else:
        yield ok("settings", "a server starts with them")
    finally:
        logger.removeHandler(nowhere)


def safety(settings: Settings) -> Iterator[Finding]:
    """Settings that are for development, or let in more than was meant."""
    if settings.debug:
        yield warning("DEBUG", "DEBUG is on: it is for development", "set DEBUG=0 in production")
    mode = settings.authentication()
    if mode == "off":
        if not settings.debug:
            yield warning(
                "AUTH", "nobody is asked for a token: whoever reaches the server may read and publish",
                "set JWT_SECRET, JWT_PUBLIC_KEY or JWKS_URL; see docs/security.md",
            )  # fmt: skip
    else:
        yield ok("AUTH", f"tokens are {mode}")
        if settings.authorization == "off":
            yield warning(
                "AUTHORIZATION", "every client with a token may subscribe to every channel",
                "set AUTHORIZATION=claims or AUTHORIZATION=rls, unless that is meant",
            )  # fmt: skip
        yield from _keys(settings)
    if "*" in (settings.cors_allowed_origins or ()):
        yield warning(
            "ORIGINS", "CORS_ALLOWED_ORIGINS=*: pages of any site may connect, with their visitors' cookies",
            "name the origins of your own pages",
        )  # fmt: skip
    for origin in settings.cors_allowed_origins or ():
        if origin.startswith("http://") and not _is_local(origin):
            yield warning("ORIGINS", f"{origin} is not encrypted: anybody on the way can change its pages", "use https")
    for name, secret in (("SECRET_KEY", settings.secret_key), ("METRICS_TOKEN", settings.metrics_token)):
        if secret is not None and (len(secret) < 16 or len(set(secret)) < LEAST_VARIETY):
            yield warning(name, f"{name} can be guessed: it is short or monotonous", "openssl rand -hex 32")


def _keys(settings: Settings) -> Iterator[Finding]:
    if settings.jwt_secret is not None and len(set(settings.jwt_secret)) < LEAST_VARIETY:
        yield error("JWT_SECRET", "JWT_SECRET can be guessed: it is monotonous", "openssl rand -hex 32")
    if settings.jwks_url is not None:
        if settings.jwks_url.startswith("http://") and not _is_local(settings.jwks_url):
            yield error("JWKS_URL", "the keys come unencrypted: who is on the way can make tokens", "use https")
        if not settings.jwt_audience:
            yield warning(
                "JWT_AUDIENCE", "tokens that the issuer made for other applications count here too",
                "set JWT_AUDIENCE, and JWT_ISSUER",
            )  # fmt: skip


def message_queue(settings: Settings) -> Iterator[Finding]:
    """Whether the Redis or Valkey between the nodes answers."""
    address = settings.message_queue
    if address is None or not address.startswith(("redis", "valkey")):
        return
    try:
        cluster.check(settings)
        RedisCluster(address, settings.message_queue_channel).ping()
    except ConfigurationError:
        return  # found already
    except OSError as failed:
        yield error(
            "MESSAGE_QUEUE", f"{redact(address)} does not answer: {failed}",
            "start it, or correct MESSAGE_QUEUE; let this machine reach it",
        )  # fmt: skip
    else:
        yield ok("MESSAGE_QUEUE", f"{redact(address)} answers")


def key_set(settings: Settings) -> Iterator[Finding]:
    """Whether the public keys of JWKS_URL can be had from here."""
    location = settings.jwks_url
    if location is None or settings.authentication() == "off":
        return
    try:
        is_address = location.startswith(("http://", "https://"))
        text = green.fetch(location, SECONDS, KeySet.max_bytes) if is_address else Path(location).read_bytes()
        keys = parse_key_set(text)
    except (OSError, ValueError) as failed:
        yield error(
            "keys", f"the keys at {location} cannot be fetched: {failed}",
            "correct JWKS_URL; let this machine reach it. Until then nobody can be let in",
        )  # fmt: skip
        return
    if keys:
        yield ok("keys", f"{len(keys)} at {location}")
    else:
        yield error("keys", f"no usable public key at {location}", "correct JWKS_URL: it names a JWK set (RFC 7517)")


def _is_local(url: str) -> bool:
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def programs(version: Mapping[str, str] | None = None) -> Iterator[Finding]:
    """Versions that go together; ``version`` are those that are installed."""
    found = version or {name: _installed(name) for name in ("gunicorn", "eventlet")}
    gunicorn, eventlet = found["gunicorn"], found["eventlet"]
    if not gunicorn.startswith("25."):
        yield error(
            "gunicorn", f"gunicorn {gunicorn}: its last line with the eventlet worker is 25",
            "pip install 'gunicorn>=25.3.0,<25.4'",
        )  # fmt: skip
    elif eventlet == "missing":
        yield error("eventlet", "eventlet is missing", "pip install eventlet")
    else:
        yield ok("programs", f"gunicorn {gunicorn}, eventlet {eventlet}")


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def workers(environment: Mapping[str, str]) -> Iterator[Finding]:
    """GUNICORN_CMD_ARGS goes over our configuration: more than one worker, or another kind, breaks the rooms."""
    arguments = shlex.split(environment.get("GUNICORN_CMD_ARGS", ""))
    for index, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if not value and argument.startswith("-w") and argument != "-w" and not argument.startswith("--"):
            name, value = "-w", argument[2:]
        value = value or "".join(arguments[index + 1 : index + 2])
        if name in ("-w", "--workers") and value != "1":
            yield error(
                "workers", f"GUNICORN_CMD_ARGS asks for {value} workers: each knows only its own clients",
                "use one worker (-w 1), and more processes where one is not enough",
            )  # fmt: skip
        if name in ("-k", "--worker-class") and value != "eventlet":
            yield error(
                "workers", f"GUNICORN_CMD_ARGS asks for the worker class {value}",
                "use --worker-class eventlet, or leave it away",
            )  # fmt: skip


def descriptors(settings: Settings) -> Iterator[Finding]:
    """Each client is a descriptor; the server raises its limit as far as the system lets it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    needed = settings.max_connections + SPARE_DESCRIPTORS
    if hard != resource.RLIM_INFINITY and hard < needed:
        yield warning(
            "open files", f"at most {hard} descriptors: MAX_CONNECTIONS={settings.max_connections} needs {needed}",
            "raise the limit (ulimit -Hn, LimitNOFILE= of systemd), or lower MAX_CONNECTIONS",
        )  # fmt: skip
    else:
        yield ok("open files", f"enough for {settings.max_connections} clients")


def port(settings: Settings) -> Iterator[Finding]:
    """Whether HOST and PORT are free, or have our server on them, and whether that one is ready."""
    where = f"{settings.host}:{settings.port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as failed:
        if failed.errno != errno.EADDRINUSE:
            yield error("port", f"{where}: {failed.strerror}", "set HOST and PORT to what this machine has and allows")
            return
    else:
        yield ok("port", f"{where} is free")
        return
    status, body = _ask_server(settings)
    if status == 200:
        yield ok("port", f"a server is ready on {where}")
    elif status == 503 and "reason" in body:
        yield error("server", f"the server on {where} is not ready: {body['reason']}", "see what its log says")
    else:
        yield error(
            "port",
            f"{where} is taken, by something that does not answer as our server does",
            "set PORT, or stop that program",
        )


def _ask_server(settings: Settings) -> tuple[int, dict[str, str]]:
    """Status and body of ``/readyz``; 0 when it is no server of ours."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}/readyz"
    try:
        try:
            with urllib.request.urlopen(url, timeout=SECONDS) as answer:
                status, text = answer.status, answer.read(10_000)
        except urllib.error.HTTPError as refused:
            with refused:
                status, text = refused.code, refused.read(10_000)
        body = json.loads(text)
    except (OSError, ValueError):  # no HTTP, or no JSON
        return 0, {}
    return (status, body) if isinstance(body, dict) and "status" in body else (0, {})
