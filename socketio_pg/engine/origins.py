"""The sources of a request: the client's address behind proxies, and the origin of the page that sent it. Pure."""

import ipaddress
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}


def client_address(environ: Mapping[str, Any], trusted_proxies: int) -> str:
    """Return the client's address for limits; for IPv6 its /64 network, as one customer usually has all of it.

    Each of the ``trusted_proxies`` in front of the server has appended one entry to ``X-Forwarded-For``. The client may
    have written the entries before those. Without proxies the header is ignored.
    """
    address = str(environ.get("REMOTE_ADDR") or "")
    if trusted_proxies:
        entries = [entry.strip() for entry in str(environ.get("HTTP_X_FORWARDED_FOR") or "").split(",")]
        # With fewer entries than proxies, the request has bypassed some of them, and the header is not trustworthy.
        if len(entries) >= trusted_proxies and entries[-trusted_proxies]:
            address = entries[-trusted_proxies]
    return _counted(address)


def _counted(address: str) -> str:
    # Some proxies append the port.
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
    """Return whether a page of ``origin`` (the header) may connect: ``allowed`` contains it, or it is the server's own.

    The server's own origin is the one that the request was sent to. X-Forwarded-Host and -Proto are used only behind
    ``trusted_proxies``. Without these the scheme is not compared, as there may be a proxy that terminates TLS.
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
    except ValueError:  # an invalid port, or an invalid host in brackets
        return False


def _first(header: object) -> str:
    return str(header or "").partition(",")[0].strip()


def _port(scheme: str, port: int | None) -> int | None:
    return _DEFAULT_PORTS.get(scheme) if port is None else port
