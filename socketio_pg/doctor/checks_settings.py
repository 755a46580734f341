"""The doctor's checks without a database: settings, installed programs, this machine."""

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
from socketio_pg.core import green, green_library
from socketio_pg.core.addresses import authority, redact
from socketio_pg.core.config import SPARE_DESCRIPTORS, Settings
from socketio_pg.core.errors import ConfigurationError
from socketio_pg.core.seal import Seal
from socketio_pg.core.sealing import Sealing
from socketio_pg.doctor.findings import Finding, error, ok, warning
from socketio_pg.engine import hosting
from socketio_pg.postgres import psycopg3
from socketio_pg.postgres.database import Database

#: The minimum number of different characters in a secret.
MIN_DISTINCT = 10
#: The remedy for a secret that is easy to guess.
RANDOM = "set it to a random text: openssl rand -hex 32"
#: The idle timeout in seconds of Heroku's router. That of nginx, HAProxy and load balancers of clouds is often 60.
PROXY_IDLE = 55.0
#: The oldest major version of gunicorn that the server runs with.
OLDEST_GUNICORN = 25
#: Seconds within which a server must answer.
SECONDS = 5.0


def configuration(settings: Settings) -> Iterator[Finding]:
    """Check that a server starts with these settings: they fit together, and keys are valid."""
    # Suppresses the server's own warnings: the other checks report them.
    logger, nowhere = logging.getLogger("socketio_pg"), logging.NullHandler()
    logger.addHandler(nowhere)
    try:
        mode = Authenticator(settings, Flask("socketio_pg", static_folder=None)).mode
        # The database is never connected.
        Permissions(settings, mode, Policies(Database("dbname=none"), 1.0))
        cluster.check(settings)
    except ConfigurationError as wrong:
        yield error("settings", wrong.message, "the server does not start with these settings: change them")
    else:
        yield ok("settings", "a server starts with these settings")
    finally:
        logger.removeHandler(nowhere)


def safety(settings: Settings) -> Iterator[Finding]:
    """Find settings that are for development, or admit more clients than intended."""
    if settings.debug:
        yield warning("DEBUG", "DEBUG is on, which is for development only", "set DEBUG=0 in production")
    mode = settings.authentication()
    if mode == "off":
        where = authority(settings.host, settings.port)
        yield warning(
            "AUTH",
            f"clients need no token: anyone who can reach {where} may read and publish",
            "set AUTH=required, and JWT_SECRET, JWT_PUBLIC_KEY or JWKS_URL; see docs/security.md",
        )
    else:
        yield ok("AUTH", f"tokens are {mode}")
        if settings.authorization == "off":
            yield warning(
                "AUTHORIZATION", "every client with a token may subscribe to every channel",
                "set AUTHORIZATION=claims or AUTHORIZATION=rls, unless this is intended",
            )  # fmt: skip
        yield from _keys(settings)
    if mode != "required" and not settings.debug and "*" in (settings.allowed_hosts or "*"):
        yield warning(
            "HOSTS", "the server answers at any host name: a page can reach it under its own name (DNS rebinding)",
            "set ALLOWED_HOSTS to the names in the addresses of your pages and clients",
        )  # fmt: skip
    if "*" in (settings.cors_allowed_origins or ()):
        yield warning(
            "ORIGINS", "CORS_ALLOWED_ORIGINS=*: pages of any site may connect, with their visitors' cookies",
            "list the origins of your own pages",
        )  # fmt: skip
    for origin in settings.cors_allowed_origins or ():
        if origin.startswith("http://") and not _is_local(origin):
            yield warning(
                "ORIGINS", f"{origin} is not encrypted: attackers can change its pages in transit", "use https"
            )
    if settings.ping_interval >= PROXY_IDLE:
        yield warning(
            "PING_INTERVAL",
            f"connections without messages have no traffic for {settings.ping_interval:g} s: many proxies close them",
            f"set PING_INTERVAL below {PROXY_IDLE:g}, or raise the idle timeout of each proxy in front of the server",
        )  # fmt: skip
    for name, secret in (("SECRET_KEY", settings.secret_key), ("METRICS_TOKEN", settings.metrics_token)):
        if secret is not None and (len(secret) < 16 or len(set(secret)) < MIN_DISTINCT):
            yield warning(name, f"{name} is easy to guess: too short or repetitive", RANDOM)


def _keys(settings: Settings) -> Iterator[Finding]:
    if settings.jwt_secret is not None and len(set(settings.jwt_secret)) < MIN_DISTINCT:
        yield error("JWT_SECRET", "JWT_SECRET is easy to guess: too repetitive", RANDOM)
    if settings.jwks_url is not None:
        if settings.jwks_url.startswith("http://") and not _is_local(settings.jwks_url):
            yield error("JWKS_URL", "the keys are fetched unencrypted: attackers can replace them", "use https")
        if not settings.jwt_audience:
            yield warning(
                "JWT_AUDIENCE", "the server also accepts tokens that the issuer made for other applications",
                "set JWT_AUDIENCE, and JWT_ISSUER",
            )  # fmt: skip


def message_queue(settings: Settings) -> Iterator[Finding]:
    """Check that the Redis or Valkey server of MESSAGE_QUEUE answers."""
    address = settings.message_queue
    if address is None or not address.startswith(("redis", "valkey")):
        return
    try:
        cluster.check(settings)
        RedisCluster(address, settings.message_queue_channel, Sealing(Seal())).ping()
    except ConfigurationError:
        return  # reported by configuration()
    except OSError as failed:
        yield error(
            "MESSAGE_QUEUE", f"{redact(address)} does not answer: {failed}",
            "start it, correct MESSAGE_QUEUE, or allow this machine to connect",
        )  # fmt: skip
    else:
        yield ok("MESSAGE_QUEUE", f"{redact(address)} answers")


def key_set(settings: Settings) -> Iterator[Finding]:
    """Check that this machine can fetch the public keys of JWKS_URL."""
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
            "correct JWKS_URL, or allow this machine to connect; until then no client with a token is admitted",
        )  # fmt: skip
        return
    if keys:
        yield ok("keys", f"{len(keys)} at {location}")
    else:
        yield error(
            "keys", f"no usable public key at {location}", "correct JWKS_URL: it must name a JWK set (RFC 7517)"
        )


def _is_local(url: str) -> bool:
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def programs(
    settings: Settings, environment: Mapping[str, str], version: Mapping[str, str] | None = None
) -> Iterator[Finding]:
    """Check the installed versions, or those in ``version``, for compatibility with the green-thread library."""
    library = _options(environment).worker_class or settings.green or ""
    if library not in green_library.LIBRARIES:
        library = green_library.LIBRARIES[0]
    found = version or {name: _installed(name) for name in ("gunicorn", library)}
    gunicorn, installed = found["gunicorn"], found[library]
    last = green_library.LAST_GUNICORN.get(library)
    if gunicorn == "missing":
        yield error(
            "gunicorn",
            f"gunicorn is missing: {library} runs under it",
            f"run pip install '{green_library.GUNICORN[library]}'",
        )
    elif last is not None and _major(gunicorn) > last:
        successor = green_library.RETIRING[library]
        yield error(
            "gunicorn", f"gunicorn {gunicorn}: the last major version with the {library} worker is {last}",
            f"run pip install '{green_library.GUNICORN[library]}', or set {green_library.SETTING}={successor}",
        )  # fmt: skip
    elif _major(gunicorn) < OLDEST_GUNICORN:
        yield error(
            "gunicorn",
            f"gunicorn {gunicorn} is too old for {library}",
            f"run pip install '{green_library.GUNICORN[library]}'",
        )
    elif installed == "missing":
        yield error(library, f"{library} is missing", f"run pip install '{green_library.REQUIREMENTS[library]}'")
    else:
        yield ok("programs", f"the server runs on {library} {installed}, under gunicorn {gunicorn}")


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _options(environment: Mapping[str, str]) -> hosting.Options:
    return hosting.options_in(shlex.split(environment.get("GUNICORN_CMD_ARGS", "")))


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def drivers(environment: Mapping[str, str], version: str | None = None) -> Iterator[Finding]:
    """Check that queries of the application through psycopg 3, the default of SQLAlchemy 2.1, block no clients."""
    version = version or _installed("psycopg")
    chosen = environment.get(psycopg3.SETTING, psycopg3.GREEN[0])
    if version == "missing":
        return
    if chosen not in psycopg3.GREEN:
        yield error(
            "psycopg 3", f"{psycopg3.SETTING}={chosen}: each query of the application stops all clients until it ends",
            f"unset {psycopg3.SETTING}: the server sets it to {psycopg3.GREEN[0]}",
        )  # fmt: skip
    else:
        yield ok("psycopg 3", f"psycopg {version} waits in green threads ({chosen})")


def workers(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check GUNICORN_CMD_ARGS, which overrides our configuration: a number of workers, of a class that we support."""
    options = _options(environment)
    count = options.workers or environment.get("WEB_CONCURRENCY") or "1"
    if count.isdigit():  # otherwise gunicorn says what is wrong
        refusal = hosting.refusal_of_several(int(count), started_with_one=False)
        if refusal is not None:
            yield error("workers", refusal, "start fewer workers (--workers, WEB_CONCURRENCY)")
    chosen, wanted = options.worker_class, settings.green
    if chosen is None:
        return
    if chosen not in green_library.LIBRARIES:
        yield error(
            "workers", f"GUNICORN_CMD_ARGS sets the worker class {chosen}",
            f"use --worker-class {' or '.join(green_library.LIBRARIES)}, or omit the option",
        )  # fmt: skip
    elif wanted not in (None, chosen):
        yield error(
            "workers", f"{green_library.SETTING} is {wanted}, but GUNICORN_CMD_ARGS sets the worker class {chosen}",
            f"omit one of the two, or set {green_library.SETTING}={chosen}",
        )  # fmt: skip


def descriptors(settings: Settings) -> Iterator[Finding]:
    """Check the hard limit of file descriptors: each client needs one, and the server raises its soft limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    needed = settings.max_connections + SPARE_DESCRIPTORS
    if hard != resource.RLIM_INFINITY and hard < needed:
        yield warning(
            "open files", f"at most {hard} descriptors: MAX_CONNECTIONS={settings.max_connections} needs {needed}",
            "raise the limit (ulimit -Hn, LimitNOFILE= in systemd), or lower MAX_CONNECTIONS",
        )  # fmt: skip
    else:
        yield ok("open files", f"enough for {settings.max_connections} clients")


def port(settings: Settings) -> Iterator[Finding]:
    """Check that HOST and PORT are free, or that a server of this package is ready on them."""
    where = authority(settings.host, settings.port)
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as failed:
        if failed.errno != errno.EADDRINUSE:
            yield error(
                "port",
                f"{where}: {failed.strerror}",
                "set HOST and PORT to an address that this machine has and a port that it allows",
            )
            return
    else:
        yield ok("port", f"{where} is free")
        return
    status, body = _ask_server(settings)
    if status == 200:
        yield ok("port", f"a server is ready on {where}")
    elif status == 503 and "reason" in body:
        yield error("server", f"the server on {where} is not ready: {body['reason']}", "check its log")
    else:
        yield error(
            "port",
            f"{where} is in use by a program that is not a socketio_pg server",
            "set PORT, or stop that program",
        )


def _ask_server(settings: Settings) -> tuple[int, dict[str, str]]:
    """Return status and body of ``/readyz``; status 0 if it is not a server of this package."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    url = f"http://{authority(host, settings.port)}/readyz"
    try:
        try:
            with urllib.request.urlopen(url, timeout=SECONDS) as answer:
                status, text = answer.status, answer.read(10_000)
        except urllib.error.HTTPError as refused:
            with refused:
                status, text = refused.code, refused.read(10_000)
        body = json.loads(text)
    except (OSError, ValueError):  # not HTTP, or not JSON
        return 0, {}
    return (status, body) if isinstance(body, dict) and "status" in body else (0, {})
