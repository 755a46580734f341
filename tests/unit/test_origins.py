"""Client addresses behind proxies, allowed origins, and allowed hosts."""

from typing import Any

import pytest

from socketio_pg.engine.origins import (
    AllowedHosts,
    _counted,
    canonical_origin,
    client_address,
    is_allowed,
    is_public,
)


@pytest.mark.parametrize(
    ("peer", "forwarded", "proxies", "wanted"),
    [
        ("192.0.2.1", None, 0, "192.0.2.1"),
        ("192.0.2.1", "203.0.113.9", 0, "192.0.2.1"),
        ("192.0.2.1", "203.0.113.9", 1, "203.0.113.9"),
        ("192.0.2.1", "6.6.6.6, 203.0.113.9", 1, "203.0.113.9"),
        ("192.0.2.1", "6.6.6.6,203.0.113.9 , 10.0.0.1", 2, "203.0.113.9"),
        ("192.0.2.1", None, 1, "192.0.2.1"),
        ("192.0.2.1", "203.0.113.9", 2, "192.0.2.1"),
        ("192.0.2.1", "203.0.113.9,", 1, "192.0.2.1"),
        ("192.0.2.1", "203.0.113.9:4711", 1, "203.0.113.9"),
        ("192.0.2.1", "[2001:db8:1:2:3::4]:4711", 1, "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", None, 0, "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", None, 0, "192.0.2.1"),
        ("", None, 0, ""),
        ("192.0.2.1", "unknown", 1, "unknown"),
        ("192.0.2.1", "x" * 10_000, 1, "x" * 100),
    ],
)
def test_client_address(peer: str, forwarded: str | None, proxies: int, wanted: str) -> None:
    environ: dict[str, Any] = {"REMOTE_ADDR": peer}
    if forwarded is not None:
        environ["HTTP_X_FORWARDED_FOR"] = forwarded
    assert client_address(environ, proxies) == wanted


def test_long_texts_of_clients_are_not_remembered() -> None:
    _counted.cache_clear()
    for number in range(10):
        client_address({"HTTP_X_FORWARDED_FOR": f"{number}{'x' * 30_000}"}, 1)
        client_address({"HTTP_X_FORWARDED_FOR": f"{number}, 203.0.113.9"}, 1)
    assert _counted.cache_info().currsize == 1
    assert None is not _counted.cache_info().maxsize == is_public.cache_info().maxsize


FORGED = {"HTTP_X_FORWARDED_HOST": "evil.example", "HTTP_X_FORWARDED_PROTO": "https"}


@pytest.mark.parametrize(
    ("origin", "more", "proxies", "wanted"),
    [
        ("http://app.example", {}, 0, True),
        ("http://app.example:80", {}, 0, True),
        ("http://APP.example", {}, 0, True),
        # The scheme of the page's URL is unknown: a proxy may terminate TLS.
        ("https://app.example", {}, 0, True),
        ("http://app.example:8080", {}, 0, False),
        ("http://app.example:8080", {"HTTP_HOST": "app.example:8080"}, 0, True),
        ("http://evil.example", {}, 0, False),
        ("http://app.example.evil.example", {}, 0, False),
        ("http://evil.example", FORGED, 0, False),
        ("https://evil.example", FORGED, 0, False),
        # The headers of trusted proxies count.
        ("https://evil.example", FORGED, 1, True),
        ("https://app.example", {"HTTP_X_FORWARDED_PROTO": "https"}, 1, True),
        ("http://app.example", {"HTTP_X_FORWARDED_PROTO": "https"}, 1, False),
        ("http://app.example", {}, 1, True),
        ("https://app.example", {}, 1, False),
        ("null", {}, 0, False),
        ("", {}, 0, False),
        (None, {}, 0, False),
        ("http://", {}, 0, False),
        ("file:///", {}, 0, False),
        ("http://app.example:99999", {}, 0, False),
        ("http://[::1", {}, 0, False),
        ("http://app.example", {"HTTP_HOST": "[::1"}, 0, False),
        ("http://app.example", {"HTTP_HOST": ""}, 0, False),
        ("javascript://app.example", {}, 0, False),
        # Clients that send the origin of their WebSocket.
        ("ws://app.example", {}, 0, True),
        ("wss://app.example", {}, 0, True),
        ("wss://app.example:443", {}, 0, True),
        ("ws://evil.example", {}, 0, False),
        ("wss://app.example", {"HTTP_X_FORWARDED_PROTO": "https"}, 1, True),
        ("ws://app.example", {"HTTP_X_FORWARDED_PROTO": "https"}, 1, False),
    ],
)
def test_own_origin_is_allowed(origin: str | None, more: dict[str, str], proxies: int, wanted: bool) -> None:
    environ = {"HTTP_HOST": "app.example", "wsgi.url_scheme": "http"} | more
    assert is_allowed(origin, environ, None, proxies) is wanted
    # Additional allowed origins do not change the result.
    assert is_allowed(origin, environ, ("https://other.example",), proxies) is wanted
    assert is_allowed("https://other.example", environ, ("https://other.example",), proxies)
    assert is_allowed(origin, environ, ("*",), proxies)


@pytest.mark.parametrize(
    ("origin", "wanted"),
    [
        ("https://app.example", True), ("wss://app.example", True), ("https://APP.example:443", True),
        ("https://other.example:8443", True), ("wss://other.example:8443", True),
        ("http://app.example", False), ("ws://app.example", False), ("https://other.example", False),
        ("https://app.example:8443", False), ("https://app.example.evil.example", False), ("null", False),
        ("http://localhost:5173", False), (None, False),
    ],
)  # fmt: skip
def test_configured_origins(origin: str | None, wanted: bool) -> None:
    allowed = ("https://app.example", "https://Other.example:8443")
    assert is_allowed(origin, {"HTTP_HOST": "api.example"}, allowed, 0) is wanted


@pytest.mark.parametrize(
    ("origin", "wanted"),
    [
        ("http://localhost:5173", True), ("https://localhost", True), ("ws://localhost:3000", True),
        ("http://app.localhost:1", True), ("http://127.0.0.1:8080", True), ("http://127.1.2.3", True),
        ("http://[::1]:5173", True), ("http://LOCALHOST:5173", True),
        ("http://localhost.evil.example", False), ("http://evillocalhost", False), ("http://192.168.1.7:5173", False),
        ("http://0.0.0.0:5173", False), ("http://127.0.0.1.evil.example", False),
        ("http://localhost@evil.example", False), ("file://localhost", False), ("null", False),
        ("http://localhost:x", False),
    ],
)  # fmt: skip
def test_origins_of_the_own_machine_are_allowed_in_development(origin: str, wanted: bool) -> None:
    environ = {"HTTP_HOST": "127.0.0.1:3030"}
    assert is_allowed(origin, environ, None, 0, loopback=True) is wanted
    assert is_allowed(origin, environ, ("https://app.example",), 0, loopback=True) is wanted
    assert not is_allowed(origin, environ, None, 0)


@pytest.mark.parametrize(
    ("origin", "wanted"),
    [
        ("wss://app.example", "https://app.example"), ("http://App.example:80", "http://app.example"),
        ("ws://app.example:3000", "http://app.example:3000"), ("https://[::1]:1", "https://[::1]:1"), ("null", None),
        ("chrome-extension://abc", None), ("https://", None), ("http://a:99999", None),
    ],
)  # fmt: skip
def test_canonical_origin(origin: str, wanted: str | None) -> None:
    assert canonical_origin(origin) == wanted


NAMES = ("app.example", ".dot.example", "*.star.example", "192.0.2.1", "2001:db8::1")


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ("app.example", True), ("APP.Example", True), ("app.example:8080", True), ("app.example.", True),
        ("app.example.:80", True), ("x.app.example", False), ("xapp.example", False),
        ("app.example.evil.example", False),
        ("dot.example", True), ("a.b.dot.example", True), ("xdot.example", False), (".dot.example", False),
        ("star.example", False), ("a.star.example", True), ("xstar.example", False), (".star.example", False),
        ("192.0.2.1", True), ("192.0.2.1:3030", True), ("192.0.2.2", False),
        ("[2001:db8::1]", True), ("[2001:DB8::1]:3030", True), ("2001:db8::1", False), ("[2001:db8::2]", False),
        (None, False), ("", False), (":80", False), ("app.example,evil.example", False),
        ("app.example, app.example", False),
        ("evil.example@app.example", False), ("app.example@evil.example", False), ("app.example/evil", False),
        ("app.example:x", False), ("app.example:80:80", False), ("[app.example]", False), (" app.example", False),
        ("app.example\n", False), ("*", False), (".", False), ("[", False), ("[::1", False), ("localhost", False),
    ],
)  # fmt: skip
def test_allowed_hosts(host: str | None, wanted: bool) -> None:
    environ = {} if host is None else {"HTTP_HOST": host}
    assert AllowedHosts(NAMES).allow(environ, 0) is wanted
    assert AllowedHosts(("*",)).allow(environ, 0)


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ("127.0.0.1:3030", True), ("192.168.1.7", True), ("[::1]:3030", True), ("[fe80::1]", True),
        ("localhost:3030", True),
        ("a.b.localhost", True), ("my-laptop", True), ("my-laptop.lan:3030", True), ("evil.example", False),
        ("my-laptop.evil.example", False), ("127.0.0.1.evil.example", False), ("localhost.evil.example", False),
        ("127.1", False), ("0x7f000001", False), ("2130706433", False),
    ],
)  # fmt: skip
def test_hosts_of_a_development_server(host: str, wanted: bool) -> None:
    asked = []

    def own_names() -> tuple[str, str]:
        asked.append(host)
        return "My-Laptop", "my-laptop.lan"

    hosts = AllowedHosts((".localhost",), addresses=True, own_names=own_names)
    for _ in range(3):
        assert hosts.allow({"HTTP_HOST": host}, 0) is wanted
    assert len(asked) <= 1


@pytest.mark.parametrize(
    ("forwarded", "proxies", "wanted"),
    [
        (None, 1, True), ("app.example", 1, True), ("evil.example", 0, True), ("evil.example", 1, False),
        ("app.example, evil.example", 1, False), ("evil.example, app.example", 2, False), ("", 1, False),
        ("app.example, app.example:443", 2, True),
    ],
)  # fmt: skip
def test_forwarded_hosts_must_be_allowed_too(forwarded: str | None, proxies: int, wanted: bool) -> None:
    environ = {"HTTP_HOST": "app.example"} | ({} if forwarded is None else {"HTTP_X_FORWARDED_HOST": forwarded})
    assert AllowedHosts(NAMES).allow(environ, proxies) is wanted
    # A page may set X-Forwarded-Host, so it does not replace Host.
    assert not AllowedHosts(NAMES).allow(environ | {"HTTP_HOST": "evil.example"}, proxies)


@pytest.mark.parametrize(
    ("peer", "wanted"),
    [
        ("203.0.113.9", True), ("8.8.8.8", True), ("2001:db8::1", True), ("172.32.0.1", True), ("100.128.0.1", True),
        ("127.0.0.1", False), ("127.9.9.9", False), ("::1", False), ("10.1.2.3", False), ("172.31.0.1", False),
        ("192.168.0.1", False), ("169.254.1.1", False), ("100.64.0.1", False), ("fd00::1", False), ("fe80::1", False),
        ("::ffff:10.0.0.1", False), ("::ffff:8.8.8.8", True), ("", False), ("unknown", True),
    ],
)  # fmt: skip
def test_public_addresses(peer: str, wanted: bool) -> None:
    assert is_public(client_address({"REMOTE_ADDR": peer}, 0)) is wanted
