"""The playground in a real Chromium: connecting, and the messages it shows."""

import json
import re

import pytest
from playwright.sync_api import Route, expect

from tests.support.demo_page import CLOCK, Demo, Psql
from tests.support.server import ServerProcess


# --- Connecting -----------------------------------------------------------------------------------------------------
def test_page_connects_and_shows_the_server_hello(demo: Demo) -> None:
    demo.start()
    expect(demo.page.locator("#status-text")).to_have_text("Connected")
    expect(demo.page.locator("#hello [data-field=sid]")).to_have_text(re.compile(r"^\S{10,}$"))
    expect(demo.page.locator("#hello [data-field=version]")).to_have_text(re.compile(r"^\d+\.\d+"))
    expect(demo.page.locator("#hello [data-field=client]")).to_have_text("anonymous")
    expect(demo.page.locator("#channels > li")).to_have_count(0)
    expect(demo.page.locator("#subscribe-channel")).to_have_value("foo")
    # A server without authentication shows nothing about tokens.
    for hidden in ("#login", "#sign-out", "#hello [data-field=until]"):
        expect(demo.page.locator(hidden)).to_be_hidden()


def test_page_of_an_open_server_has_a_banner(demo: Demo) -> None:
    demo.start()
    banner = demo.page.get_by_role("complementary", name="Security warning")
    expect(banner).to_be_visible()
    expect(banner).to_contain_text("This server is open.")
    expect(banner).to_contain_text("AUTH=required")


def test_short_address_redirects_to_the_page(demo: Demo) -> None:
    demo.page.goto(f"{demo.url}/socket-test")
    demo.expect_state("connected")
    assert demo.page.url == f"{demo.url}/static/test.html"


def test_visitor_can_disconnect_and_reconnect(demo: Demo, psql: Psql) -> None:
    demo.start()
    demo.subscribe("foo")
    demo.page.click("#connection-toggle")
    demo.expect_state("disconnected")
    expect(demo.page.locator("#hello")).to_be_hidden()
    demo.publish("foo", "1")
    expect(demo.errors).to_contain_text("not_connected")
    demo.page.click("#connection-toggle")
    demo.expect_state("connected")
    demo.expect_subscribed("foo")
    psql("SELECT pg_notify('foo', '\"back\"')")
    expect(demo.messages("foo")).to_contain_text(['"back"'])


def test_page_reconnects_and_resubscribes_after_a_network_failure(demo: Demo, psql: Psql) -> None:
    demo.network_may_fail = True
    demo.start("?channels=foo")
    demo.expect_subscribed("foo")
    demo.page.context.set_offline(True)
    demo.expect_state("reconnecting")
    expect(demo.chip("foo")).to_have_attribute("data-state", "pending")
    demo.page.context.set_offline(False)
    demo.expect_state("connected")
    demo.expect_subscribed("foo")
    # NOTIFY is not stored: the page must report the gap.
    expect(demo.gaps("foo")).to_contain_text("this page was not connected")
    psql("SELECT pg_notify('foo', '\"after\"')")
    expect(demo.messages("foo")).to_contain_text(['"after"'])


def test_page_reconnects_after_a_server_restart(demo: Demo, live_server: ServerProcess, psql: Psql) -> None:
    demo.network_may_fail = True
    demo.start()
    demo.subscribe("foo", "bar")
    live_server.stop()
    demo.expect_state("reconnecting")
    expect(demo.page.locator("#status-text")).to_have_text("Reconnecting…")
    live_server.start()
    demo.expect_state("connected")
    demo.expect_subscribed("foo")
    demo.expect_subscribed("bar")
    psql("SELECT pg_notify('bar', '\"after\"')")
    expect(demo.messages("bar")).to_contain_text(['"after"'])


# --- Messages -------------------------------------------------------------------------------------------------------
def test_notify_from_sql_appears_with_time_and_channel(demo: Demo, psql: Psql) -> None:
    demo.start()
    demo.subscribe("foo")
    psql("SELECT pg_notify(%s, %s)", "foo", '{"hello":"world","list":[1,{}]}')
    row = demo.messages("foo")
    expect(row.locator("time")).to_have_text(CLOCK)
    expect(row.locator(".channel-name")).to_have_text("foo")
    expect(row.locator(".payload")).to_have_text('{"hello": "world", "list": [1, {}]}')
    expect(demo.chip("foo").locator(".channel-count")).to_have_text("1")


def test_payload_that_is_not_json_appears_as_a_string(demo: Demo, psql: Psql) -> None:
    demo.start("?channels=foo")
    demo.expect_subscribed("foo")
    psql("SELECT pg_notify('foo', 'plain \"text\"')")
    expect(demo.messages("foo").locator(".payload")).to_have_text(r'"plain \"text\""')


def test_messages_of_several_channels_appear_newest_first(demo: Demo, psql: Psql) -> None:
    demo.start("?channels=a, Sensor 7,ü")
    for name in ("a", "Sensor 7", "ü"):
        demo.expect_subscribed(name)
        psql("SELECT pg_notify(%s, '1')", name)
        expect(demo.messages(name)).to_have_count(1)
    psql("SELECT pg_notify('never asked for', '1')")
    psql("SELECT pg_notify('a', '2')")
    expect(demo.rows.locator(".channel-name")).to_have_text(["a", "ü", "Sensor 7", "a"])
    expect(demo.chip("a").locator(".channel-count")).to_have_text("2")


def test_unsubscribed_channel_shows_no_messages(demo: Demo, psql: Psql) -> None:
    demo.start()
    demo.subscribe("foo", "bar")
    demo.chip("foo").get_by_role("button", name="Unsubscribe from foo").click()
    expect(demo.page.locator("#announcer")).to_have_text("Unsubscribed from foo")  # the server has confirmed it
    expect(demo.chip("foo")).to_have_count(0)
    psql("SELECT pg_notify('foo', '1')")
    psql("SELECT pg_notify('bar', '2')")
    expect(demo.messages("bar")).to_have_count(1)
    expect(demo.messages("foo")).to_have_count(0)
    demo.subscribe("foo")
    psql("SELECT pg_notify('foo', '3')")
    expect(demo.messages("foo").locator(".payload")).to_have_text(["3"])


@pytest.mark.nightly
def test_only_the_newest_500_messages_are_kept(demo: Demo, psql: Psql) -> None:
    demo.start("?channels=busy")
    demo.expect_subscribed("busy")
    psql("SELECT pg_notify('busy', i::text) FROM generate_series(1, 1700) AS i")
    expect(demo.chip("busy").locator(".channel-count")).to_have_text("1,700")
    expect(demo.rows).to_have_count(500)
    expect(demo.rows.first.locator(".payload")).to_have_text("1700")
    expect(demo.rows.last.locator(".payload")).to_have_text("1201")
    expect(demo.page.locator("#message-count")).to_have_text("1,700 received · newest 500 kept")


def test_messages_can_be_paused_filtered_and_cleared(demo: Demo, psql: Psql) -> None:
    demo.start()
    demo.subscribe("a", "b")
    demo.page.click("#pause")
    psql("SELECT pg_notify('a', '1')")
    psql("SELECT pg_notify('b', '2')")
    expect(demo.page.locator("#message-count")).to_contain_text("paused, 2 waiting")
    expect(demo.rows).to_have_count(0)
    demo.page.click("#pause")
    expect(demo.rows).to_have_count(2)
    demo.page.select_option("#filter", "b")
    expect(demo.messages("a")).to_be_hidden()
    expect(demo.messages("b")).to_be_visible()
    psql("SELECT pg_notify('a', '3')")
    expect(demo.messages("a")).to_have_count(2)
    expect(demo.messages("a").first).to_be_hidden()
    demo.page.select_option("#filter", "")
    expect(demo.messages("a").first).to_be_visible()
    demo.page.click("#clear")
    expect(demo.rows).to_have_count(0)


@pytest.mark.nightly
def test_long_payloads_are_truncated_until_expanded(demo: Demo, psql: Psql) -> None:
    demo.start("?channels=foo")
    demo.expect_subscribed("foo")
    psql("SELECT pg_notify('foo', to_json(repeat('x', 5000))::text)")
    payload = demo.messages("foo").locator(".payload")
    expect(payload).to_have_text(re.compile(r'^"x{500,700}…$'))
    demo.messages("foo").get_by_role("button").click()
    expect(payload).to_have_text(f'"{"x" * 5000}"')


@pytest.mark.parametrize(
    "hostile",
    [
        "<img src=x onerror=\"window.hacked='img'\">",
        "<script>window.hacked='script'</script>",
        "</code><svg onload=\"window.hacked='svg'\">",
    ],
)
def test_hostile_text_is_shown_as_text(demo: Demo, psql: Psql, hostile: str) -> None:
    demo.start()
    demo.subscribe(hostile)
    psql("SELECT pg_notify(%s, %s)", hostile, hostile)
    psql("SELECT pg_notify(%s, %s)", hostile, json.dumps({hostile: [hostile]}))
    expect(demo.rows).to_have_count(2)
    expect(demo.rows.last.locator(".payload")).to_have_text(json.dumps(hostile))
    expect(demo.rows.first.locator(".channel-name")).to_have_text(hostile)
    demo.try_to_subscribe(f"{hostile}*")  # refused: the error contains the name
    expect(demo.errors).to_contain_text(f"{hostile}*")
    assert demo.page.locator("main :is(img, script, svg), #errors :is(img, script, svg)").count() == 0
    assert demo.page.evaluate("window.hacked") is None


def test_strict_content_security_policy_breaks_nothing(demo: Demo, psql: Psql) -> None:
    """The page needs no inline script or style. Chromium would log a violation of the policy to the console."""

    def with_policy(route: Route) -> None:
        response = route.fetch()
        policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'"
        route.fulfill(response=response, headers={**response.headers, "content-security-policy": policy})

    # Chromium does not know the origin of a page from `fulfill`, so it asks for permission to reach 127.0.0.1.
    demo.page.context.grant_permissions(["local-network-access"])
    demo.page.route("**/static/test.html*", with_policy)
    demo.start("?channels=foo")
    demo.expect_subscribed("foo")
    psql("SELECT pg_notify('foo', '1')")
    expect(demo.messages("foo")).to_have_count(1)
