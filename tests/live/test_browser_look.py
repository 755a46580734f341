"""The playground in a real Chromium: its layout, and the source of its Socket.IO client."""

import base64
import hashlib
import json
import re

import pytest
from playwright.sync_api import Route, expect

from tests.support.demo_page import CDN_CLIENT, CLIENT_FILE, LOCAL_CLIENT, ROOT, STATIC, Demo, Psql
from tests.support.nightly import sampled


# --- Layout ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scheme", sampled(["light", "dark"], lambda scheme: scheme == "dark"))
def test_phone_layout_needs_no_horizontal_scrolling(demo: Demo, psql: Psql, scheme: str) -> None:
    demo.page.set_viewport_size({"width": 360, "height": 740})
    demo.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    demo.start()
    demo.subscribe("x" * 63, "foo")
    psql("SELECT pg_notify(%s, %s)", "x" * 63, "y" * 3000)
    psql("SELECT pg_notify(%s, %s)", "foo", json.dumps({"long": "words " * 50}))
    demo.try_to_subscribe("z" * 64)
    demo.publish("x" * 63, "not JSON " + "z" * 200)
    expect(demo.rows).to_have_count(2)
    expect(demo.errors).to_have_count(1)
    assert demo.page.evaluate("document.documentElement.scrollWidth") == 360
    background = demo.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    lightness = float(re.findall(r"[\d.]+", background)[0])
    assert (lightness > 0.9) if scheme == "light" else (lightness < 0.3), background


def test_keyboard_reaches_every_control(demo: Demo) -> None:
    demo.start("?channels=foo")
    demo.expect_subscribed("foo")
    reached = []
    for _ in range(15):
        demo.page.keyboard.press("Tab")
        reached.append(
            demo.page.evaluate("(e => e.id || e.ariaLabel || e.className || e.type)(document.activeElement)")
        )
    expected = ["connection-toggle", "subscribe-channel", "submit", "subscribe-history", "Unsubscribe from foo"]
    expected += ["publish-channel", "publish-payload", "publish-durable", "submit", "sql-copy", "sql", "filter"]
    expected += ["pause", "clear", "scroller"]
    assert reached == expected


def test_first_screen_of_a_phone_has_messages(demo: Demo, psql: Psql) -> None:
    demo.page.set_viewport_size({"width": 390, "height": 844})
    demo.start()
    demo.subscribe("foo")
    psql("SELECT pg_notify('foo', n::text) FROM generate_series(1, 3) AS n")
    expect(demo.rows).to_have_count(3)
    for row in demo.rows.all():
        expect(row).to_be_in_viewport(ratio=1)
    # The form for publishing is a click away.
    expect(demo.page.locator("#publish-form")).to_be_hidden()
    demo.publish("foo", "4")
    expect(demo.rows).to_have_count(4)


@pytest.mark.nightly
def test_errors_disappear_unless_the_visitor_is_at_them(demo: Demo) -> None:
    demo.reusable = False  # Playwright cannot restore the clock
    demo.page.clock.install()
    demo.start()
    demo.try_to_subscribe("z" * 64)
    expect(demo.errors).to_have_count(1)
    demo.page.clock.fast_forward(5_000)  # the clock also goes on by itself
    demo.errors.get_by_role("button").focus()
    demo.page.clock.fast_forward(14_000)
    expect(demo.errors).to_have_count(1)
    demo.page.locator("#subscribe-channel").focus()
    demo.page.clock.fast_forward(16_000)
    expect(demo.errors).to_have_count(0)


# --- The source of the Socket.IO client -----------------------------------------------------------------------------
def test_cdn_client_is_used_when_the_local_one_is_missing(demo: Demo) -> None:
    demo.network_may_fail = True
    demo.page.route(LOCAL_CLIENT, lambda route: route.fulfill(status=404))
    # The browser checks these bytes against the integrity in client.js, as it would check the CDN's.
    headers = {"access-control-allow-origin": "*", "content-type": "application/javascript"}
    asked: list[str] = []

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(path=CLIENT_FILE, headers=headers)

    demo.page.route(CDN_CLIENT, answer)
    demo.start()
    assert len(asked) == 1
    assert asked[0].endswith("/socket.io.min.js")


def test_modified_cdn_client_is_not_run(demo: Demo) -> None:
    demo.network_may_fail = True
    demo.page.route(LOCAL_CLIENT, lambda route: route.abort())
    changed = CLIENT_FILE.read_text("utf-8") + "window.hacked = 1;"
    headers = {"access-control-allow-origin": "*", "content-type": "application/javascript"}
    demo.page.route(CDN_CLIENT, lambda route: route.fulfill(body=changed, headers=headers))
    with demo.page.expect_event("pageerror"):
        demo.open()
    demo.expect_state("failed")
    assert demo.page.evaluate("window.hacked") is None
    assert "could not be loaded" in demo.exceptions.pop()


def test_page_explains_a_missing_client(demo: Demo) -> None:
    demo.network_may_fail = True
    demo.page.route(LOCAL_CLIENT, lambda route: route.abort())
    demo.page.route(CDN_CLIENT, lambda route: route.abort())
    with demo.page.expect_event("pageerror"):
        demo.open()
    demo.expect_state("failed")
    expect(demo.page.locator("#fatal")).to_contain_text("npm run vendor")
    expect(demo.page.locator("#subscribe-form button")).to_be_disabled()
    assert "could not be loaded" in demo.exceptions.pop()


@pytest.mark.usefixtures("chromium")  # it checks that the client file exists
def test_cdn_address_and_integrity_match_the_locked_client() -> None:
    script = (STATIC / "client.js").read_text("utf-8")
    lock = json.loads((ROOT / "package-lock.json").read_text("utf-8"))
    version = lock["packages"]["node_modules/socket.io-client"]["version"]
    assert f'"https://cdn.socket.io/{version}/socket.io.min.js"' in script
    digest = base64.b64encode(hashlib.sha384(CLIENT_FILE.read_bytes()).digest()).decode()
    assert f'"sha384-{digest}"' in script
