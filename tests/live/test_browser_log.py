"""The playground in a real Chromium: positions, history, and the replay of missed messages."""

import re

from playwright.sync_api import expect

from tests.support.demo_page import Demo
from tests.support.log import Log


def test_durable_messages_show_their_position(log_demo: Demo, channel: str) -> None:
    log_demo.start(f"?channels={channel}")
    log_demo.expect_subscribed(channel)
    log_demo.publish(channel, '"kept"', durable=True)
    expect(log_demo.messages(channel).locator(".position")).to_have_text(re.compile(r"^#\d+$"))
    expect(log_demo.messages(channel).locator(".badge")).to_have_count(0)
    log_demo.publish(channel, '"passing"')
    expect(log_demo.messages(channel)).to_have_count(2)
    expect(log_demo.messages(channel).first.locator(".place")).to_be_empty()


def test_history_is_replayed_and_marked(log_demo: Demo, log: Log, channel: str) -> None:
    log.publish(channel, 1, 30)
    log.settle()
    log_demo.start()
    log_demo.try_to_subscribe(channel, history=True)
    log_demo.expect_subscribed(channel)
    expect(log_demo.messages(channel)).to_have_count(20)
    expect(log_demo.messages(channel).locator(".badge")).to_have_text(["replayed"] * 20)
    expect(log_demo.messages(channel).first.locator(".payload")).to_have_text('[30, ""]')
    # A second request replays it again; a live message arrives once.
    log_demo.try_to_subscribe(channel, history=True)
    expect(log_demo.messages(channel)).to_have_count(40)
    log.publish(channel, 31, 31)
    expect(log_demo.messages(channel)).to_have_count(41)
    expect(log_demo.messages(channel).first.locator(".badge")).to_have_count(0)


def test_pattern_shows_each_message_once_with_its_channel(log_demo: Demo, log: Log, channel: str) -> None:
    log_demo.start()
    log_demo.subscribe(f"{channel}:*", f"{channel}:7")
    for name in (f"{channel}:7", f"{channel}:8"):
        log.publish(name, 1, 2)
        expect(log_demo.messages(name)).to_have_count(2)
    for name, count in ((f"{channel}:*", "4"), (f"{channel}:7", "2")):
        expect(log_demo.chip(name).locator(".channel-count")).to_have_text(count)
    log_demo.page.select_option("#filter", f"{channel}:8")
    expect(log_demo.messages(f"{channel}:7").first).to_be_hidden()
    expect(log_demo.rows.and_(log_demo.page.locator(":visible"))).to_have_count(2)


def test_history_without_a_log_shows_an_error(demo: Demo) -> None:
    demo.start()
    demo.try_to_subscribe("foo", history=True)
    demo.expect_subscribed("foo")
    expect(demo.errors.locator(".error-code")).to_have_text("not_installed")
    demo.publish("foo", "1", durable=True)
    expect(demo.errors.locator(".error-code")).to_have_text(["log_not_installed", "not_installed"])


def test_messages_published_while_offline_are_replayed(log_demo: Demo, log: Log, channel: str) -> None:
    log_demo.network_may_fail = True
    log_demo.start(f"?channels={channel}")
    log_demo.expect_subscribed(channel)
    log.publish(channel, 1, 1)
    expect(log_demo.messages(channel)).to_have_count(1)
    log_demo.page.context.set_offline(True)
    log_demo.expect_state("reconnecting")
    log.publish(channel, 2, 3)
    log_demo.page.context.set_offline(False)
    expect(log_demo.messages(channel).locator(".payload")).to_have_text(['[3, ""]', '[2, ""]', '[1, ""]'])
    expect(log_demo.messages(channel).locator(".badge")).to_have_count(2)
    expect(log_demo.gaps(channel)).to_contain_text("Messages of NOTIFY may have been missed")


def test_messages_trimmed_from_the_log_show_a_gap(log_demo: Demo, log: Log, channel: str) -> None:
    log_demo.network_may_fail = True
    log_demo.start(f"?channels={channel}")
    log_demo.expect_subscribed(channel)
    log_demo.page.context.set_offline(True)
    log_demo.expect_state("reconnecting")
    log.publish(channel, 1, 3)
    log.settle()
    log.sql("WITH gone AS (DELETE FROM socketio_pg.log RETURNING position) "
            "UPDATE socketio_pg.head SET trimmed = (SELECT max(position) FROM gone)")  # fmt: skip
    log.server.restart()  # otherwise the server would replay them from memory
    log_demo.page.context.set_offline(False)
    expect(log_demo.gaps(channel).last).to_contain_text("Messages of the log were missed")
    expect(log_demo.gaps(channel).last).to_contain_text(re.compile(r"trimmed, continues after #\d+"))
    expect(log_demo.messages(channel)).to_have_count(0)


def test_durable_sql_line_publishes_the_message(log_demo: Demo, log: Log) -> None:
    log_demo.start()
    for channel in ("foo", "it's", 'My "own"'):
        log_demo.subscribe(channel)
        log_demo.page.fill("#publish-channel", channel)
        log_demo.page.fill("#publish-payload", '{"it\'s": ["\\\\", "ü"]}')
        log_demo.page.check("#publish-durable")
        line = log_demo.page.inner_text("#sql")
        assert line.startswith("SELECT socketio_pg.publish('")
        log.sql(line)
        expect(log_demo.messages(channel).locator(".payload")).to_have_text('{"it\'s": ["\\\\", "ü"]}')
        expect(log_demo.messages(channel).locator(".position")).to_have_count(1)
