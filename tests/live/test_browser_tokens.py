"""The playground in a real Chromium: signing in with tokens, expiry and renewal."""

import contextlib
import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.live.test_client_tokens import SECRET, token
from tests.support.clock import set_clock
from tests.support.demo_page import PATIENCE, Demo, Psql, demo_page
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess


@pytest.fixture(scope="module")
def guarded_server(newest_pg: Cluster) -> Iterator[ServerProcess]:
    """A server that requires a token and allows only the channels in its claims."""
    server = ServerProcess(
        newest_pg.url(), app="tests.support.clocked_app:app", JWT_SECRET=SECRET, JWT_LEEWAY="0", AUTHORIZATION="claims"
    )
    yield server
    server.close()


@pytest.fixture
def expire(guarded_server: ServerProcess) -> Iterator[Callable[[], None]]:
    """Let the next minute pass for the server, which ends tokens of that time."""
    yield lambda: set_clock(guarded_server, 60)
    set_clock(guarded_server)


@pytest.fixture
def guarded(chromium: Browser, guarded_server: ServerProcess) -> Iterator[Demo]:
    with demo_page(chromium, guarded_server.url) as demo:
        yield demo


def test_page_asks_for_a_token_and_does_not_store_it(guarded: Demo, psql: Psql) -> None:
    page, good = guarded.page, token(3600)
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    page.on("websocket", lambda websocket: addresses.append(websocket.url))
    guarded.open("?channels=foo")
    guarded.expect_state("disconnected")
    expect(page.locator("#status-text")).to_have_text("Not signed in")
    expect(page.locator("#login-reason")).to_have_text("This server requires a token.")
    expect(guarded.errors).to_have_count(0)
    guarded.sign_in(" ")
    expect(page.locator("#login-error")).to_have_text("Paste a token.")
    guarded.sign_in(good[:-4] + "AAAA")
    expect(page.locator("#login-error")).to_have_text("Not accepted: the token's signature is wrong.")
    expect(page.locator("#token")).to_have_attribute("aria-invalid", "true")
    guarded.expect_state("disconnected")
    guarded.sign_in(f"Bearer {good}")
    guarded.expect_subscribed("foo")
    guarded.expect_client("alice")
    expect(page.locator(".open-server")).to_be_hidden()
    expect(page.locator("#hello [data-field=until]")).to_have_text(re.compile(r"\d\d:\d\d:\d\d$"))
    expect(page.locator("#login")).to_be_hidden()
    psql("SELECT pg_notify('foo', '1')")
    expect(guarded.messages("foo")).to_have_count(1)
    guarded.publish("foo", "2")
    expect(guarded.messages("foo").first).to_contain_text("from alice")
    assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    expect(page.locator("#token")).to_have_value("")
    assert len(addresses) > 5
    assert not [address for address in [*addresses, page.url] if good[:10] in address]
    page.click("#sign-out")
    expect(page.locator("#login-reason")).to_have_text("This server requires a token.")
    expect(page.locator("#sign-out")).to_be_hidden()


def test_token_can_be_replaced_before_it_expires(guarded: Demo, psql: Psql) -> None:
    guarded.open("?channels=foo")
    guarded.sign_in(token(28))
    guarded.expect_subscribed("foo")
    expect(guarded.page.locator("#login-reason")).to_contain_text(re.compile(r"Your token expires at \d\d:\d\d:\d\d\."))
    guarded.sign_in(token(-5))
    expect(guarded.page.locator("#login-error")).to_have_text("Not accepted: the token has expired.")
    guarded.sign_in(token(3600, "bob"))
    guarded.expect_client("bob")
    expect(guarded.page.locator("#login")).to_be_hidden()
    psql("SELECT pg_notify('foo', '1')")
    expect(guarded.rows).to_have_count(1)  # no gap


def test_page_asks_for_another_token_after_expiry(guarded: Demo, expire: Callable[[], None], psql: Psql) -> None:
    guarded.open("?channels=foo")
    guarded.sign_in(token(60))
    guarded.expect_subscribed("foo")
    expire()
    expect(guarded.page.locator("#login-error")).to_have_text("Not accepted: the token has expired.", timeout=PATIENCE)
    guarded.expect_state("disconnected")
    expect(guarded.chip("foo")).to_have_attribute("data-state", "pending")
    expect(guarded.errors).to_have_count(0)
    guarded.sign_in(token(3600))
    guarded.expect_subscribed("foo")
    expect(guarded.gaps("foo")).to_contain_text("this page was not connected")
    psql("SELECT pg_notify('foo', '1')")
    expect(guarded.messages("foo")).to_have_count(1)


def test_forbidden_channel_is_reported_and_the_others_continue(guarded: Demo, psql: Psql) -> None:
    guarded.open("?channels=mine,other,secret")
    guarded.sign_in(token(28, subscribe=["mine", "other"], publish=[]))
    guarded.expect_subscribed("mine")
    guarded.expect_subscribed("other")
    expect(guarded.errors).to_contain_text("forbidden subscribe secret")
    expect(guarded.chip("secret")).to_have_count(0)
    guarded.publish("mine", "1")
    expect(guarded.errors.first).to_contain_text("forbidden publish mine")
    expect(guarded.page.locator("#login-reason")).to_contain_text("expires at")
    guarded.sign_in(token(3600, subscribe=["mine"]))
    row = guarded.page.locator("#messages > li[data-kind=end]")
    expect(row).to_contain_text("The server has ended the subscription: it is no longer allowed.")
    expect(row.locator(".channel-name")).to_have_text("other")
    expect(guarded.errors.first).to_contain_text("forbidden subscribe other")
    expect(guarded.chip("other")).to_have_count(0)
    psql("SELECT pg_notify('mine', '1')")
    expect(guarded.messages("mine")).to_have_count(1)


@pytest.mark.nightly
def test_anonymous_client_can_sign_in(chromium: Browser, newest_pg: Cluster) -> None:
    server = ServerProcess(newest_pg.url(), JWT_SECRET=SECRET, AUTH="optional", PUBLIC_CHANNELS="news")
    with contextlib.closing(server), demo_page(chromium, server.url) as demo:
        demo.start("?channels=news,foo")
        demo.expect_client("anonymous")
        demo.expect_subscribed("news")
        expect(demo.errors).to_contain_text("forbidden subscribe foo")
        expect(demo.page.locator("#login-reason")).to_contain_text("You are anonymous.")
        demo.sign_in(token(3600))
        demo.expect_client("alice")
        demo.subscribe("foo")
        expect(demo.errors).to_have_count(0)
        expect(demo.rows).to_have_count(0)  # no gap: the connection is the same
        demo.page.click("#sign-out")
        demo.expect_client("anonymous")
        demo.expect_subscribed("news")
        expect(demo.page.locator("#messages > li[data-kind=end]")).to_have_count(1)
