"""The seal of a node: waits for the key, counts and forgets refused texts."""

import logging
import time

import pytest

from socketio_pg.core import green
from socketio_pg.core.errors import ClusterKeyError
from socketio_pg.core.seal import Key, Seal
from socketio_pg.core.sealing import Sealing

KEYS = [Key.from_bytes(bytes(32))]


@pytest.fixture
def sealing() -> Sealing:
    return Sealing(Seal())


def test_sealing_waits_for_the_first_key(sealing: Sealing) -> None:
    green.run_soon(sealing.use, "1/1", KEYS)
    assert sealing.open("c", sealing.seal("c", "x")) == "x"


def test_what_a_client_shows_is_not_refused_before_there_is_a_key(sealing: Sealing) -> None:
    """After a restart an EventSource would give up for good, and a session would not be recovered."""
    other = Sealing(Seal())
    other.use("1/1", KEYS)
    shown, sealed = other.seal("ticket", "x"), other.seal_for_client("pid", "y")
    green.run_soon(sealing.use, "1/1", KEYS)
    assert sealing.open_from_client("pid", sealed) == "y"
    later = Sealing(Seal())
    later.wait_seconds = 0.01
    with pytest.raises(ClusterKeyError):
        later.open_shown("ticket", shown)
    with pytest.raises(ClusterKeyError):
        later.open_from_client("pid", sealed)
    later.use("1/1", KEYS)
    assert later.open_shown("ticket", shown) == "x"


def test_without_a_key_sealing_fails_and_nothing_is_counted(sealing: Sealing) -> None:
    sealing.wait_seconds = 0.01
    with pytest.raises(ClusterKeyError):
        sealing.seal("c", "x")
    assert sealing.open("c", "anything") is None
    assert sealing.refused() == []


def test_refused_texts_are_logged_once_a_second_and_forgotten(
    sealing: Sealing, caplog: pytest.LogCaptureFixture
) -> None:
    sealing.use("1/1", KEYS)
    with caplog.at_level(logging.WARNING):
        began = time.monotonic()
        for _ in range(100):
            assert sealing.open("refused here", "anything") is None
        assert 1 <= len(caplog.records) <= 1 + time.monotonic() - began
    assert "refused here" in caplog.text
    assert sealing.refused() == ["unsealed"]
    sealing.memory = 0.0
    assert sealing.refused() == []


def test_a_text_with_an_unknown_key_asks_for_the_keys(sealing: Sealing) -> None:
    other = Seal()
    other.use("1/1", [Key.from_bytes(b"x" * 32)])
    sealing.use("1/1", KEYS)
    assert sealing.open("c", other.seal("c", "x")) is None
    with green.timeout(30.0):
        sealing.wait_wanted(60.0)
