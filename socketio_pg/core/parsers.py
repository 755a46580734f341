"""What a setting's text means: each of these raises ValueError with what is allowed. The settings are in `config`."""

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
        raise ValueError("a text that is not empty")
    return value.strip()


def database_url(value: object) -> str:
    """libpq's form of the address: Heroku's ``postgres://`` and SQLAlchemy's ``+psycopg2`` are taken too."""
    text = plain(value)
    scheme, separator, rest = text.partition("://") if re.match(r"[\w+.-]+://", text) else (text, "", "")
    if separator and scheme in ("postgres", "postgresql", "postgresql+psycopg2"):
        try:
            parts = urlsplit(f"postgresql://{rest}")
            _ = parts.username  # a bad bracketed host raises only here
        except ValueError:
            raise ValueError("an address like postgresql://user:password@host:5432/database") from None
        return f"postgresql://{rest}"
    if not separator and re.search(r"(^|\s)(host|hostaddr|dbname|user|service|port)\s*=", text):
        return text
    raise ValueError("postgresql://…, postgres://… or postgresql+psycopg2://…")


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
    if not origins:  # engine.io takes an empty list for: do not check at all
        raise ValueError("'*', or at least one origin like https://example.com")
    return origins


def choice(*allowed: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        # YAML and local.cfg have off as a boolean.
        text = "off" if value is False else str(value).strip().lower()
        if text not in allowed:
            raise ValueError(" or ".join(f"'{choice}'" for choice in allowed))
        return text

    return parse


def names(value: object) -> tuple[str, ...]:
    items = value if isinstance(value, (list, tuple)) else str(value).split(",")
    return tuple(str(item).strip() for item in items if str(item).strip())


def role(value: object) -> str:
    """A role of PostgreSQL; ``none`` would mean: back to the server's own."""
    name = plain(value)
    if name == "none" or len(name.encode()) > 63:
        raise ValueError("the name of a role of PostgreSQL")
    return name


def roles(value: object) -> tuple[str, ...]:
    return tuple(role(name) for name in names(value))


def public_key(value: object) -> str:
    """A public key as PEM text: from a file, or with ``\\n`` for line ends, as hosters' variables have it."""
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
