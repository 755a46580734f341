"""The playground in a real Chromium: publishing, errors and gaps."""

import json
import re

import pytest
from playwright.sync_api import WebSocketRoute, expect

from tests.support.demo_page import PATIENCE, Demo, Psql
from tests.support.patience import until


# --- Publishing -----------------------------------------------------------------------------------------------------
def test_message_published_by_the_page_arrives(demo: Demo) -> None:
    demo.start()
    demo.subscribe("foo")
    demo.publish("foo", '{ "from":\n"the page" }')
    expect(demo.messages("foo").locator(".payload")).to_have_text(['{"from": "the page"}'])
    expect(demo.page.locator("#publish-result")).to_have_text(re.compile(r"^Committed in \d+ ms$"))


@pytest.mark.parametrize("shortcut", ["Control+Enter", "Meta+Enter"])
def test_keyboard_shortcut_publishes(demo: Demo, shortcut: str) -> None:
    demo.start("?channels=foo")
    demo.expect_subscribed("foo")
    demo.page.fill("#publish-payload", '"typed"')
    demo.page.press("#publish-payload", shortcut)
    expect(demo.messages("foo").locator(".payload")).to_have_text(['"typed"'])


def test_page_refuses_text_that_is_not_json(demo: Demo) -> None:
    demo.start("?channels=foo")
    demo.expect_subscribed("foo")
    demo.publish("foo", "{'single': 'quotes'}")
    expect(demo.page.locator("#publish-error")).to_contain_text("Not sent, this is not JSON")
    expect(demo.page.locator("#publish-payload")).to_have_attribute("aria-invalid", "true")
    expect(demo.page.locator("#publish-payload")).to_be_focused()
    demo.page.fill("#publish-payload", '"right now"')
    expect(demo.page.locator("#publish-error")).to_be_empty()
    demo.page.click("#publish-form button")
    expect(demo.messages("foo").locator(".payload")).to_have_text(['"right now"'])  # the only one


def test_sql_line_publishes_the_message(demo: Demo, psql: Psql) -> None:
    demo.start()
    for channel in ("foo", "Foo", "order", "two words", 'quo"te', "it's", "1st", "a$b", "ü"):
        demo.subscribe(channel)
        demo.page.fill("#publish-channel", channel)
        demo.page.fill("#publish-payload", '{"it\'s": ["\\\\", "ü"]}')
        psql(demo.page.inner_text("#sql"))
        expect(demo.messages(channel).locator(".payload")).to_have_text('{"it\'s": ["\\\\", "ü"]}')


@pytest.mark.nightly
def test_sql_line_is_short_for_plain_names_and_can_be_copied(demo: Demo) -> None:
    demo.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    demo.start()
    expect(demo.page.locator("#sql")).to_have_text("""NOTIFY foo, '{"hello": "world"}';""")
    demo.page.click("#sql-copy")
    expect(demo.page.locator("#sql-copy")).to_have_text("Copied")
    assert demo.page.evaluate("navigator.clipboard.readText()") == """NOTIFY foo, '{"hello": "world"}';"""
    demo.page.fill("#publish-channel", 'My "own"')
    demo.page.fill("#publish-payload", "not JSON")
    expect(demo.page.locator("#sql")).to_have_text("""NOTIFY "My ""own\""", 'not JSON';""")


# --- Errors and gaps ------------------------------------------------------------------------------------------------
def test_server_errors_are_shown_with_code_and_message(demo: Demo) -> None:
    demo.start()
    demo.try_to_subscribe("x" * 64, "foo")
    expect(demo.errors).to_have_count(1)
    expect(demo.errors.locator(".error-code")).to_have_text("invalid_channel")
    expect(demo.errors.locator(".error-message")).to_contain_text("63 bytes")
    demo.expect_subscribed("foo")  # the other channel of the list is subscribed
    expect(demo.page.locator("#channels > li")).to_have_count(1)
    demo.publish("foo", json.dumps("x" * 8000))
    expect(demo.errors.locator(".error-code")).to_have_text(["payload_too_large", "invalid_channel"])
    demo.publish("foo", json.dumps("x"))  # publishing works now, so its error disappears
    expect(demo.errors.locator(".error-code")).to_have_text(["invalid_channel"])
    demo.errors.get_by_role("button").click()
    expect(demo.errors).to_have_count(0)


@pytest.mark.nightly
def test_empty_fields_are_explained(demo: Demo) -> None:
    demo.start()
    demo.try_to_subscribe(" ", " ")
    expect(demo.page.locator("#subscribe-error")).to_contain_text("Enter the name of a channel")
    demo.publish(" ", "1")
    expect(demo.page.locator("#publish-error")).to_contain_text("Enter the name of a channel")


def test_subscription_refused_without_a_database_is_retried(demo: Demo, psql: Psql) -> None:
    refusals, refusing = 0, True

    def refuse(page_side: WebSocketRoute) -> None:
        server_side = page_side.connect_to_server()

        def from_page(frame: str | bytes) -> None:
            nonlocal refusals
            request = re.match(r'42(\d+)\["subscribe"', str(frame))
            if request and refusing:
                refusals += 1
                error = {"code": "database_unavailable", "message": "the database cannot be reached"}
                page_side.send(f"43{request[1]}{json.dumps([{'ok': False, 'error': error}])}")
            else:
                server_side.send(frame)

        page_side.on_message(from_page)

    demo.route_web_socket(refuse)
    demo.start("?channels=foo")
    expect(demo.errors.locator(".error-code")).to_have_text("database_unavailable")

    def asked_again() -> bool:
        demo.page.wait_for_timeout(20)  # lets Playwright handle the page's frames
        return refusals >= 2

    until(asked_again, "the page asks again")
    refusing = False
    demo.expect_subscribed("foo")
    expect(demo.errors).to_have_count(0)
    psql("SELECT pg_notify('foo', '1')")
    expect(demo.messages("foo")).to_have_count(1)


def test_gaps_and_error_events_are_shown(demo: Demo) -> None:
    def add_events(page_side: WebSocketRoute) -> None:
        server_side = page_side.connect_to_server()

        def from_server(frame: str | bytes) -> None:
            page_side.send(frame)
            if re.match(r"43\d", str(frame)):  # the acknowledgement
                gap = {"channel": "foo", "reason": "database_connection_lost", "since": "2026-01-02T03:04:05.678Z"}
                page_side.send("42" + json.dumps(["gap", gap | {"until": "2026-01-02T03:04:06Z"}]))
                page_side.send("42" + json.dumps(["error", {"code": "forbidden", "message": "<b>no</b>"}]))

        server_side.on_message(from_server)

    demo.route_web_socket(add_events)
    demo.start("?channels=foo")
    expect(demo.gaps("foo")).to_contain_text("Messages may have been missed")
    expect(demo.gaps("foo")).to_contain_text(re.compile(r"connection lost, since \d\d:04:05.678, until \d\d:04:06.000"))
    expect(demo.errors).to_contain_text("forbidden")
    expect(demo.errors).to_contain_text("<b>no</b>")


def test_lost_database_connection_shows_a_gap(demo: Demo, psql: Psql) -> None:
    demo.start("?channels=foo")
    demo.expect_subscribed("foo")
    psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'socketio_pg%'")
    expect(demo.gaps("foo")).to_contain_text("Messages may have been missed", timeout=PATIENCE)
    demo.expect_state("connected")
