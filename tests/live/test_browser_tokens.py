"""The demo page in a real Chromium: it asks for a token, and for another one."""

import contextlib
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.live.test_client_tokens import SECRET, token
from tests.support.demo_page import PATIENCE, Demo, Psql, demo_page
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess


@pytest.fixture(scope="module")
def asking_server(postgres18: Cluster) -> Iterator[ServerProcess]:
    """It lets in only who has a token, to the channels that stand in it."""
    server = ServerProcess(postgres18.url(), JWT_SECRET=SECRET, JWT_LEEWAY="0", AUTHORIZATION="claims")
    yield server
    server.close()


@pytest.fixture
def asking(chromium: Browser, asking_server: ServerProcess) -> Iterator[Demo]:
    with demo_page(chromium, asking_server.url) as demo:
        yield demo


def test_it_asks_for_a_token_and_keeps_it_to_itself(asking: Demo, psql: Psql) -> None:
    page, good = asking.page, token(3600)
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    page.on("websocket", lambda websocket: addresses.append(websocket.url))
    asking.open("?channels=foo")
    asking.expect_state("disconnected")
    expect(page.locator("#status-text")).to_have_text("Not signed in")
    expect(page.locator("#login-reason")).to_have_text("This server requires a token.")
    expect(asking.errors).to_have_count(0)
    asking.sign_in(" ")
    expect(page.locator("#login-error")).to_have_text("Paste a token.")
    asking.sign_in(good[:-4] + "AAAA")
    expect(page.locator("#login-error")).to_have_text("Not accepted: the token's signature is wrong.")
    expect(page.locator("#token")).to_have_attribute("aria-invalid", "true")
    asking.expect_state("disconnected")
    asking.sign_in(f"Bearer {good}")
    asking.expect_subscribed("foo")
    asking.expect_client("alice")
    expect(page.locator("#hello [data-field=until]")).to_have_text(re.compile(r"\d\d:\d\d:\d\d$"))
    expect(page.locator("#login")).to_be_hidden()
    psql("SELECT pg_notify('foo', '1')")
    expect(asking.messages("foo")).to_have_count(1)
    assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    expect(page.locator("#token")).to_have_value("")
    assert len(addresses) > 5
    assert not [address for address in [*addresses, page.url] if good[:10] in address]
    page.click("#sign-out")
    expect(page.locator("#login-reason")).to_have_text("This server requires a token.")
    expect(page.locator("#sign-out")).to_be_hidden()


def test_a_token_can_be_replaced_before_its_end(asking: Demo, psql: Psql) -> None:
    asking.open("?channels=foo")
    asking.sign_in(token(12))
    asking.expect_subscribed("foo")
    expect(asking.page.locator("#login-reason")).to_contain_text(re.compile(r"Your token expires at \d\d:\d\d:\d\d\."))
    asking.sign_in(token(-5))
    expect(asking.page.locator("#login-error")).to_have_text("Not accepted: the token has expired.")
    asking.sign_in(token(3600, "bob"))
    asking.expect_client("bob")
    expect(asking.page.locator("#login")).to_be_hidden()
    psql("SELECT pg_notify('foo', '1')")
    expect(asking.rows).to_have_count(1)  # no gap


def test_after_the_tokens_end_it_asks_for_another_and_goes_on(asking: Demo, psql: Psql) -> None:
    asking.open("?channels=foo")
    asking.sign_in(token(5))
    asking.expect_subscribed("foo")
    expect(asking.page.locator("#login-error")).to_have_text("Not accepted: the token has expired.", timeout=PATIENCE)
    asking.expect_state("disconnected")
    expect(asking.chip("foo")).to_have_attribute("data-state", "pending")
    expect(asking.errors).to_have_count(0)
    asking.sign_in(token(3600))
    asking.expect_subscribed("foo")
    expect(asking.gaps("foo")).to_contain_text("this page was not connected")
    psql("SELECT pg_notify('foo', '1')")
    expect(asking.messages("foo")).to_have_count(1)


def test_what_is_forbidden_is_told_and_the_rest_goes_on(asking: Demo, psql: Psql) -> None:
    asking.open("?channels=mine,other,secret")
    asking.sign_in(token(12, subscribe=["mine", "other"], publish=[]))
    asking.expect_subscribed("mine")
    asking.expect_subscribed("other")
    expect(asking.errors).to_contain_text("forbidden subscribe secret")
    expect(asking.chip("secret")).to_have_count(0)
    asking.publish("mine", "1")
    expect(asking.errors.first).to_contain_text("forbidden publish mine")
    expect(asking.page.locator("#login-reason")).to_contain_text("expires at")
    asking.sign_in(token(3600, subscribe=["mine"]))
    row = asking.page.locator("#messages > li[data-kind=end]")
    expect(row).to_contain_text("The server has ended the subscription: it is no longer allowed.")
    expect(row.locator(".channel-name")).to_have_text("other")
    expect(asking.errors.first).to_contain_text("forbidden subscribe other")
    expect(asking.chip("other")).to_have_count(0)
    psql("SELECT pg_notify('mine', '1')")
    expect(asking.messages("mine")).to_have_count(1)


def test_who_is_anonymous_is_offered_to_sign_in(chromium: Browser, postgres18: Cluster) -> None:
    server = ServerProcess(postgres18.url(), JWT_SECRET=SECRET, AUTH="optional", PUBLIC_CHANNELS="news")
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
