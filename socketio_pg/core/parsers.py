"""Parsers of setting values. Each raises ValueError with a description of the allowed values. See also `config`."""

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from socketio_pg.core.channels import validate_channel
from socketio_pg.core.errors import InvalidChannelError

_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off", ""}
_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def boolean(value: object) -> bool:
    text = str(value).strip().lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise ValueError("1 or 0, true or false")


def integer(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if not isinstance(value, bool) and re.fullmatch(r"-?\d{1,18}", str(value).strip()):
            number = int(str(value))
            if low <= number <= high:
                return number
        raise ValueError(f"a whole number from {low} to {high}")

    return parse


def seconds(low: float, high: float) -> Callable[[object], float]:
    def parse(value: object) -> float:
        try:
            number = float(str(value))
        except ValueError:
            number = -1.0
        if isinstance(value, bool) or not low <= number <= high:
            raise ValueError(f"seconds from {low:g} to {high:g}")
        return number

    return parse


def plain(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a non-empty string")
    return value.strip()


def secret(value: object) -> str:
    text = plain(value)
    if len(text) < 16:
        raise ValueError("at least 16 characters, such as those of: openssl rand -hex 32")
    return text


def host(value: object) -> str:
    """Return a host name or an IP address, without the brackets of an IPv6 address."""
    text = plain(value)
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    try:
        if ":" in text:
            ipaddress.IPv6Address(text)
        valid = re.fullmatch(r"[^\s/@\[\]]+", text) is not None
    except ValueError:
        valid = False
    if not valid:
        raise ValueError("a host name or an IP address, without a port")
    return text


def database_url(value: object) -> str:
    """Return the address in libpq's form; also accepts Heroku's ``postgres://`` and a driver as for SQLAlchemy."""
    # SQLAlchemy's URL class, which Flask-SQLAlchemy accepts too. Its str() has no password.
    render = getattr(value, "render_as_string", None)
    text = plain(value if render is None else render(hide_password=False))
    scheme, separator, rest = text.partition("://") if re.match(r"[\w+.-]+://", text) else (text, "", "")
    if separator and re.fullmatch(r"postgres(ql)?(\+\w+)?", scheme):
        try:
            parts = urlsplit(f"postgresql://{rest}")
            _ = parts.username  # an invalid bracketed host raises only here
        except ValueError:
            raise ValueError("an address like postgresql://user:password@host:5432/database") from None
        return f"postgresql://{rest}"
    if not separator and re.search(r"(^|\s)(host|hostaddr|dbname|user|service|port)\s*=", text):
        return text
    raise ValueError("postgresql://…, postgres://…, or one with a driver such as postgresql+psycopg://…")


def message_queue(value: object) -> str:
    text = plain(value)
    if text.lower() in ("postgres", "postgresql"):
        return "postgres"
    scheme, separator, _ = text.partition("://")
    if separator and scheme in ("redis", "rediss", "redis+sentinel", "valkey", "valkeys", "valkey+sentinel", "kafka"):
        return text
    raise ValueError("'postgres', or an address like redis://host:6379/0, valkey://host:6379/0 or kafka://host:9092")


def origins(value: object) -> tuple[str, ...]:
    items = value if isinstance(value, (list, tuple)) else str(value).split(",")
    origins = tuple(str(item).strip().rstrip("/") for item in items if str(item).strip())
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
            raise ValueError("'*', or origins like https://example.com separated by commas")
    if not origins:  # python-engineio reads an empty list as "no check"
        raise ValueError("'*', or at least one origin like https://example.com")
    return origins


def hosts(value: object) -> tuple[str, ...]:
    """Return host names without ports, in lower case; IPv6 addresses without brackets."""
    items = value if isinstance(value, (list, tuple)) else str(value).split(",")
    hosts = tuple(str(item).strip().lower().removesuffix(".") for item in items if str(item).strip())
    hosts = tuple(host[1:-1] if re.fullmatch(r"\[[0-9a-f:.]+\]", host) else host for host in hosts)
    for host in hosts:
        # Colons occur in IPv6 addresses only.
        is_name = re.fullmatch(r"(\*\.|\.)?[\w-]+(\.[\w-]+)*", host)
        if host != "*" and not is_name and not re.fullmatch(r"[0-9a-f]*:[0-9a-f:.]*:[0-9a-f.]*", host):
            raise ValueError("names like example.com, .example.com or *.example.com separated by commas, without ports")
    if not hosts:
        raise ValueError("'*', or at least one name like example.com")
    return hosts


def choice(*allowed: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        # YAML reads off as a boolean, and local.cfg may have False.
        text = "off" if value is False else str(value).strip().lower()
        if text not in allowed:
            raise ValueError(" or ".join(f"'{choice}'" for choice in allowed))
        return text

    return parse


def names(value: object) -> tuple[str, ...]:
    items = value if isinstance(value, (list, tuple)) else str(value).split(",")
    return tuple(str(item).strip() for item in items if str(item).strip())


def claims(value: object) -> tuple[str, ...]:
    return () if value == "off" else names(value)


def claim_values(value: object) -> tuple[str, ...]:
    """Return values of a claim: ``VALUE``, or ``CLAIM=VALUE``."""
    found = names(value)
    if any(not all(one.split("=", 1)) for one in found):
        raise ValueError("values like operator, or claims with values like groups=operators, separated by commas")
    return found


def cluster_key(value: object) -> tuple[str, ...]:
    keys = names(value)
    if not keys or min(map(len, keys)) < 32:
        raise ValueError("random texts of at least 32 characters, separated by commas")
    return keys


def role(value: object) -> str:
    """Return the name of a PostgreSQL role; rejects ``none``, which in SET ROLE means the session's own role."""
    name = plain(value)
    if name == "none" or len(name.encode()) > 63:
        raise ValueError("the name of a PostgreSQL role")
    return name


def roles(value: object) -> tuple[str, ...]:
    return tuple(role(name) for name in names(value))


def tables(value: object) -> tuple[str, ...]:
    """Return names of tables as ``schema.table``, and ``schema.*`` for all of a schema."""
    found = names(value)
    for name in found:
        schema, _, table = name.partition(".")
        if not schema or not table or "*" in schema or ("*" in table and table != "*"):
            raise ValueError("tables like public.orders, or schemas like public.*, separated by commas")
    return found


def public_key(value: object) -> str:
    """Return a public key as PEM text, read from a file or given with ``\\n`` for line ends, as hosters do."""
    text = plain(value).replace("\\n", "\n")
    if not text.startswith("-----BEGIN"):
        try:
            text = Path(text).expanduser().read_text("utf-8").strip()
        except (OSError, ValueError):
            text = ""
    if not text.startswith(("-----BEGIN PUBLIC KEY-----", "-----BEGIN CERTIFICATE-----", "-----BEGIN RSA PUBLIC KEY-")):
        raise ValueError("a public key or certificate as PEM, or the path of a file with one")
    return text


def jwks_location(value: object) -> str:
    text = plain(value)
    if re.match(r"https?://", text):
        try:
            if urlsplit(text).hostname:
                return text
        except ValueError:
            pass
    elif text.startswith("file:///"):
        return text[7:]
    elif not re.match(r"\w+:", text):
        return text
    raise ValueError("https://…, http://…, or the path of a file")


def patterns(value: object) -> tuple[str, ...]:
    items = value if isinstance(value, (list, tuple)) else str(value).split(",")
    patterns = tuple(str(item).strip() for item in items if str(item).strip())
    for pattern in patterns:
        try:
            validate_channel(pattern.replace("*", "x"))
        except InvalidChannelError as error:
            raise ValueError(f"channel names and patterns like orders:* separated by commas ({error})") from None
    return patterns


def log_level(value: object) -> str:
    level = str(value).strip().upper()
    if level not in _LOG_LEVELS:
        raise ValueError(", ".join(_LOG_LEVELS))
    return level


def channel(value: object) -> str:
    """Return the name of a channel."""
    try:
        return validate_channel(plain(value))
    except InvalidChannelError as error:
        raise ValueError(f"a channel name; {error.message}") from None
