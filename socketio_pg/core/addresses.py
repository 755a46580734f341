"""Addresses of databases and servers: in libpq's form, and in messages without their passwords."""

import re

from socketio_pg.core import parsers
from socketio_pg.core.errors import ConfigurationError

#: libpq parameters used unless the address sets them: they detect a broken network connection in 15 to 20 s.
LIBPQ_DEFAULTS = {
    "keepalives_idle": "5",
    "keepalives_interval": "3",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
}


def database_url(value: object) -> str:
    """Return a database address in libpq's form. Raises :class:`ConfigurationError`."""
    try:
        return parsers.database_url(value)
    except ValueError as error:
        raise ConfigurationError(f"the database address is {redact(str(value))!r}; allowed: {error}.") from None


def redact(address: str | None) -> str | None:
    """Return a database address without its password, for messages and logs. In doubt hides too much."""
    if address is None:
        return None
    if re.match(r"[\w+.-]+://", address):
        # Up to the last @: a password that is not percent-encoded may contain any character.
        address = re.sub(r"(://[^:@/?#]*:).*@", r"\1***@", address, flags=re.DOTALL)
    elif "@" in address and not re.match(r"\s*\w+\s*=", address):
        address = "***" + address[address.rindex("@") :]
    return re.sub(
        r"((?:ssl)?password\s*=\s*)('(?:[^'\\]|\\.)*'?|(?:\\.|[^\s&\\])+)",
        r"\1***",
        address,
        flags=re.DOTALL | re.IGNORECASE,
    )


def authority(host: str, port: int) -> str:
    """Return host and port as in a URL: an IPv6 address is in brackets (RFC 3986, section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
