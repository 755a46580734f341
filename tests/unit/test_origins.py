"""Client addresses behind proxies, and allowed origins."""

from typing import Any

import pytest

from socketio_pg.engine.origins import client_address, is_allowed


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
    ],
)
def test_own_origin_is_allowed(origin: str | None, more: dict[str, str], proxies: int, wanted: bool) -> None:
    environ = {"HTTP_HOST": "app.example", "wsgi.url_scheme": "http"} | more
    assert is_allowed(origin, environ, None, proxies) is wanted
    # Additional allowed origins do not change the result.
    assert is_allowed(origin, environ, ("https://other.example",), proxies) is wanted
    assert is_allowed("https://other.example", environ, ("https://other.example",), proxies)
    assert is_allowed(origin, environ, ("*",), proxies)
