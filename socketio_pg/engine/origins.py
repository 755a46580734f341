"""Where a request comes from: the client's address behind proxies, and the origin of the page that made it. Pure."""

import ipaddress
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}


def client_address(environ: Mapping[str, Any], trusted_proxies: int) -> str:
    """The address that limits count for; an IPv6 one stands for its network of 64 bits, which is one customer's.

    Each of the ``trusted_proxies`` before the server has added one entry to the end of ``X-Forwarded-For``. What stands
    before those the client may have written itself. Without proxies the header is nobody's word.
    """
    address = str(environ.get("REMOTE_ADDR") or "")
    if trusted_proxies:
        entries = [entry.strip() for entry in str(environ.get("HTTP_X_FORWARDED_FOR") or "").split(",")]
        # Fewer than there are proxies: it came past them, so what it says is worth nothing.
        if len(entries) >= trusted_proxies and entries[-trusted_proxies]:
            address = entries[-trusted_proxies]
    return _counted(address)


def _counted(address: str) -> str:
    # Some proxies write the port as well.
    host = address[1:].partition("]")[0] if address.startswith("[") else address
    if host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return address[:100]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((int(parsed), 64), strict=False))
    return str(parsed)


def is_allowed(
    origin: str | None, environ: Mapping[str, Any], allowed: tuple[str, ...] | None, trusted_proxies: int
) -> bool:
    """Whether a page of ``origin`` (the header) may connect: one that is ``allowed``, or the server's own.

    Own is what the request itself was sent to. Only behind ``trusted_proxies`` do X-Forwarded-Host and -Proto count.
    Without those the scheme is not compared: a proxy that ends TLS may be there all the same.
    """
    if allowed is not None and "*" in allowed:
        return True
    if origin is None:
        return False
    if allowed is not None and origin in allowed:
        return True
    try:
        page = urlsplit(origin)
        if page.scheme not in _DEFAULT_PORTS or not page.hostname:
            return False
        scheme = page.scheme
        host = str(environ.get("HTTP_HOST") or "")
        if trusted_proxies:
            scheme = _first(environ.get("HTTP_X_FORWARDED_PROTO")) or str(environ.get("wsgi.url_scheme") or "")
            host = _first(environ.get("HTTP_X_FORWARDED_HOST")) or host
        own = urlsplit(f"{scheme}://{host}")
        return (page.scheme, page.hostname, _port(page.scheme, page.port)) == (
            own.scheme,
            own.hostname,
            _port(own.scheme, own.port),
        )
    except ValueError:  # no port, no host in brackets
        return False


def _first(header: object) -> str:
    return str(header or "").partition(",")[0].strip()


def _port(scheme: str, port: int | None) -> int | None:
    return _DEFAULT_PORTS.get(scheme) if port is None else port
