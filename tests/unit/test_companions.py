"""Metadata of notifications: joined to the notification that follows, opened once, and not forged."""

import json
from collections.abc import Sequence

import pytest

from socketio_pg.cluster.remote_listener import separate, together
from socketio_pg.core.meta import META_CHANNEL
from socketio_pg.core.seal import Key, Seal
from socketio_pg.core.sealing import Sealing
from socketio_pg.postgres.companions import Joiner, Notification, seal_meta

META = '{"from":{"sub":"42"}}'


def node() -> Sealing:
    """Return the sealing of a node of one installation."""
    sealing = Sealing(Seal())
    sealing.use("1/1", [Key.from_bytes(bytes(32))])
    return sealing


def companion(sealing: Sealing, channel: str = "foo", payload: str = "1") -> Notification:
    return META_CHANNEL, seal_meta(sealing, channel, payload, META)


def joined(sealing: Sealing, *reads: Sequence[Notification], listens: str = "foo") -> list[Notification]:
    joiner = Joiner(sealing)
    return [found for read in reads for found in joiner.join(read, lambda channel: channel == listens)]


@pytest.fixture(params=["with a cluster key", "without"])
def sealing(request: pytest.FixtureRequest) -> Sealing:
    return node() if request.param == "with a cluster key" else Sealing(Seal())


def test_metadata_is_joined_to_the_next_notification_only(sealing: Sealing) -> None:
    with_meta = ("foo", f"1\0{META}")
    assert joined(sealing, [companion(sealing), ("foo", "1"), ("foo", "1")]) == [with_meta, ("foo", "1")]
    assert joined(sealing, [companion(sealing)], [("foo", "1")]) == [with_meta], "two reads of the connection"
    assert joined(sealing, [("foo", "1")]) == [("foo", "1")]


@pytest.mark.parametrize("other", [("foo", "2"), ("bar", "1")])
def test_metadata_is_not_joined_to_another_message(sealing: Sealing, other: Notification) -> None:
    assert joined(sealing, [companion(sealing), other, ("foo", "1")]) == [other, ("foo", "1")]


def test_metadata_of_a_channel_that_the_connection_does_not_get_is_ignored(sealing: Sealing) -> None:
    assert joined(sealing, [companion(sealing)], [("foo", "1")], listens="bar") == [("foo", "1")]


def test_each_connection_joins_a_text_once(sealing: Sealing) -> None:
    sent = companion(sealing)
    joiner, other = Joiner(sealing), Joiner(sealing)
    for one in (joiner, other):
        assert one.join([sent, ("foo", "1")], lambda channel: True) == [("foo", f"1\0{META}")]
        assert one.join([sent, ("foo", "1")], lambda channel: True) == [("foo", "1")], "sent again by somebody"


def test_another_node_joins_it_and_a_reader_of_the_database_does_not() -> None:
    sent = [companion(node()), ("foo", "1")]
    assert joined(node(), sent) == [("foo", f"1\0{META}")]
    stranger = Sealing(Seal())
    assert joined(stranger, sent) == [("foo", "1")]
    stranger.use("1/1", [Key.from_bytes(bytes(31) + b"1")])
    assert joined(stranger, sent) == [("foo", "1")]


@pytest.mark.parametrize("text", ["", META, "foo\t\t" + META, "sealed1 1/1 abc def", "sealed1"])
def test_forged_text_is_ignored(sealing: Sealing, text: str) -> None:
    assert joined(sealing, [(META_CHANNEL, text), ("foo", "1")]) == [("foo", "1")]


def test_text_that_is_sealed_for_another_channel_is_ignored() -> None:
    sealing = node()
    forged = sealing.seal("socketio_pg", "foo\tdigest\t" + META)
    assert joined(sealing, [(META_CHANNEL, forged), ("foo", "1")]) == [("foo", "1")]


def test_nodes_hand_it_on_as_a_field_that_older_ones_ignore() -> None:
    found = [("foo", "1"), ("foo", f"2\0{META}"), ("bar", f"\0{META}")]
    sent = json.loads(json.dumps(separate(found)))
    assert sent["notifications"] == [["foo", "1"], ["foo", "2"], ["bar", ""]]
    assert together(sent) == found
    assert separate(found[:1]) == {"notifications": found[:1]}
    assert together({"gaps": []}) == []
