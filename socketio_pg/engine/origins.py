"""The client's address behind proxies, the origin of the page that sent a request, and the requested host. Pure."""

import functools
import ipaddress
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}
_WEB_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
#: Characters of an address, and addresses whose parsed form is remembered: parsing one takes 10 to 50 µs.
MAX_ADDRESS, CACHED = 100, 4_096


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
    # Clients may have written long texts, which the cache must not keep.
    return _counted(address) if len(address) <= MAX_ADDRESS else address[:MAX_ADDRESS]


@functools.lru_cache(CACHED)
def _counted(address: str) -> str:
    # Some proxies append the port.
    host = address[1:].partition("]")[0] if address.startswith("[") else address
    if host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((int(parsed), 64), strict=False))
    return str(parsed)


_PRIVATE = tuple(
    ipaddress.ip_network(network)
    for network in (
        "127.0.0.0/8", "::/64",  # loopback
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7",  # RFC 1918, RFC 4193
        "169.254.0.0/16", "fe80::/10",  # link-local
        "100.64.0.0/10",  # RFC 6598: carrier-grade NAT, and load balancers of some clouds
    )
)  # fmt: skip


@functools.lru_cache(CACHED)
def is_public(address: str) -> bool:
    """Return whether an address of :func:`client_address` is that of a client on the internet.

    Other addresses may be those of a proxy that is not in TRUSTED_PROXIES, and so of all clients. A connection over a
    Unix socket has no address.
    """
    try:
        network = ipaddress.ip_network(address)
    except ValueError:
        return bool(address)
    return not any(
        network.version == private.version and network.subnet_of(private)  # type: ignore[arg-type]
        for private in _PRIVATE
    )


#: A scheme, a host in lower case, and a port.
_Origin = tuple[str, str, int]


def is_allowed(
    origin: str | None,
    environ: Mapping[str, Any],
    allowed: tuple[str, ...] | None,
    trusted_proxies: int,
    *,
    loopback: bool = False,
) -> bool:
    """Return whether a page of ``origin`` (the header) may connect: ``allowed`` contains it, or it is the server's own.

    The server's own origin is the one that the request was sent to. X-Forwarded-Host and -Proto are used only behind
    ``trusted_proxies``. Without these the scheme is not compared, as there may be a proxy that terminates TLS.
    With ``loopback`` every origin of the client's own machine is allowed, whatever its port.
    """
    if allowed is not None and "*" in allowed:
        return True
    page = _parsed(origin)
    if page is None:
        return False
    if loopback and _is_loopback(page[1]):
        return True
    if allowed is not None and page in map(_parsed, allowed):
        return True
    scheme, host = page[0], str(environ.get("HTTP_HOST") or "")
    if trusted_proxies:
        scheme = _first(environ.get("HTTP_X_FORWARDED_PROTO")) or str(environ.get("wsgi.url_scheme") or "")
        host = _first(environ.get("HTTP_X_FORWARDED_HOST")) or host
    return page == _parsed(f"{scheme}://{host}")


def canonical_origin(origin: str) -> str | None:
    """Return an origin in the form of CORS_ALLOWED_ORIGINS; None when it is none of a web page."""
    parsed = _parsed(origin)
    if parsed is None:
        return None
    scheme, host, port = parsed
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}" if port == _DEFAULT_PORTS[scheme] else f"{scheme}://{shown}:{port}"


def _parsed(origin: str | None) -> _Origin | None:
    """Parse an origin. Some clients send that of their WebSocket, such as ``wss://example.com``."""
    try:
        parts = urlsplit(origin or "")
        scheme = _WEB_SCHEMES.get(parts.scheme)
        if scheme is None or not parts.hostname:
            return None
        return scheme, parts.hostname, _DEFAULT_PORTS[scheme] if parts.port is None else parts.port
    except ValueError:  # an invalid port, or an invalid host in brackets
        return None


def is_local(environ: Mapping[str, Any]) -> bool:
    """Return whether a request comes from this machine, to a name of the loopback interface, and through no proxy.

    The name keeps out pages whose owner points their own name at this machine (DNS rebinding). A proxy is known by the
    headers that it adds, and nginx, which by default adds none, by the version of HTTP that it speaks to servers. One
    that passes connections on unread, such as kubectl port-forward, cannot be known.
    """
    if environ.get("SERVER_PROTOCOL") == "HTTP/1.0" or any(name.startswith(_FORWARDED) for name in environ):
        return False
    try:
        local = ipaddress.ip_address(str(environ.get("REMOTE_ADDR") or "")).is_loopback
    except ValueError:
        return False
    host = _HOST.fullmatch(str(environ.get("HTTP_HOST") or ""))
    return local and host is not None and _is_loopback((host[1] or host[2]).lower().removesuffix("."))


#: How headers begin that proxies add.
_FORWARDED = ("HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_FORWARDED_", "HTTP_X_REAL_IP", "HTTP_CF_", "HTTP_X_ORIGINAL_")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


#: A Host header: a name, an IPv4 address, or an IPv6 address in brackets, with or without a port.
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s,:/@\[\]]+))(?::[0-9]*)?", re.IGNORECASE)


class AllowedHosts:
    """The hosts that a server answers to.

    Without this check, a page of ``evil.example`` whose owner points that name at the server (DNS rebinding) has the
    same origin as the server in the eyes of the browser.

    ``names``: ``example.com``; ``.example.com``, for that name and its subdomains; ``*.example.com``, for subdomains
    only; ``*`` for any host. ``addresses``: any IP address is allowed, since no other name leads to it. ``own_names()``
    returns further names; it is called once, when a request names a host that is not allowed otherwise.
    """

    def __init__(
        self,
        names: Collection[str],
        *,
        addresses: bool = False,
        own_names: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._any = "*" in names
        self._exact = {name for name in names if name[0] not in ".*"} | {name[1:] for name in names if name[0] == "."}
        self._endings = tuple(name.lstrip("*") for name in names if name[0] in ".*" and name != "*")
        self._addresses = addresses
        self._own_names: Callable[[], Collection[str]] | None = own_names

    def allow(self, environ: Mapping[str, Any], trusted_proxies: int) -> bool:
        """Return whether the request was sent to an allowed host.

        Behind ``trusted_proxies``, X-Forwarded-Host must be allowed as well: a page can set that header itself.
        """
        if self._any:
            return True
        hosts = [str(environ.get("HTTP_HOST") or "")]
        if trusted_proxies and "HTTP_X_FORWARDED_HOST" in environ:
            hosts += [host.strip() for host in str(environ["HTTP_X_FORWARDED_HOST"]).split(",")]
        return all(map(self._allows, hosts))

    def _allows(self, header: str) -> bool:
        # WSGI servers join several Host headers with commas, which no host contains.
        found = _HOST.fullmatch(header)
        if found is None:
            return False
        host = (found[1] or found[2]).lower().removesuffix(".")
        if self._is_named(host) or (self._addresses and _is_address(host)):
            return True
        if self._own_names is not None:
            self._exact.update(name.lower() for name in self._own_names())
            self._own_names = None
        return host in self._exact

    def _is_named(self, host: str) -> bool:
        return host in self._exact or (host.endswith(self._endings) and not host.startswith("."))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _first(header: object) -> str:
    return str(header or "").partition(",")[0].strip()
