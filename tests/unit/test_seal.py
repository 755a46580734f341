"""Sealed texts between nodes: forged, foreign, repeated and old ones are refused."""

import os

import pytest

from socketio_pg.core import seal as module
from socketio_pg.core.errors import ClusterKeyError
from socketio_pg.core.seal import MAX_IDENTITY, MAX_TEXT_BYTES, WINDOW, Key, Seal, SealError

KEY = Key.from_bytes(bytes(range(32)))
OTHER = Key.from_bytes(bytes(32))


class Clock:
    """The time of the module under test, in ms."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "_now", clock)
    return clock


def made(*keys: Key, identity: str = "7345/16384") -> Seal:
    seal = Seal()
    seal.use(identity, keys or (KEY,))
    return seal


def refused(seal: Seal, text: str, channel: str = "c", *, replayable: bool = False) -> str:
    with pytest.raises(SealError) as raised:
        seal.open(channel, text, replayable=replayable)
    return raised.value.reason


@pytest.mark.parametrize("text", ["", "x", "naïve ✓\n\t", "y" * 100_000])
def test_a_sealed_text_is_ascii_without_the_text_and_opens_again(text: str) -> None:
    sealed = made().seal("c", text)
    assert sealed.isascii()
    assert "\n" not in sealed
    assert len(text) < 2 or text not in sealed
    assert made().open("c", sealed) == text


def test_the_longest_text_fits_into_a_notification() -> None:
    seal = made(identity="9" * MAX_IDENTITY)
    assert 7_990 <= len(seal.seal("c", "x" * MAX_TEXT_BYTES)) <= 7_999


def test_without_a_key_nothing_is_sealed_or_opened() -> None:
    with pytest.raises(ClusterKeyError, match="has not been read"):
        Seal().seal("c", "x")
    assert refused(Seal(), made().seal("c", "x")) == "unknown_key"


@pytest.mark.parametrize(
    "text", ["", "installed", "sealed1", "sealed1 7345/16384", "sealed1 7345/16384 x", "sealed2 7345/16384 x y", "{}"]
)
def test_other_texts_are_unsealed(text: str) -> None:
    assert refused(made(), text) == "unsealed"


def test_a_text_of_another_installation_is_foreign_also_with_the_same_key() -> None:
    with pytest.raises(SealError) as raised:
        made().open("c", made(identity="99/1").seal("c", "x"))
    assert (raised.value.reason, raised.value.detail) == ("foreign", "99/1")


def test_the_identity_the_key_the_channel_and_each_character_are_authenticated() -> None:
    sealed = made().seal("c", "x" * 40)
    assert refused(made(), sealed, "d") == "forged"
    assert refused(made(identity="99/1"), sealed.replace("7345/16384", "99/1")) == "forged"
    assert refused(made(OTHER), sealed) == "unknown_key"
    assert refused(made(OTHER), sealed.replace(KEY.id, OTHER.id)) == "forged"
    start = sealed.rindex(" ") + 1
    for place in range(start, len(sealed) - 4):
        changed = sealed[:place] + ("A" if sealed[place] != "A" else "B") + sealed[place + 1 :]
        assert refused(made(), changed) == "forged"


@pytest.mark.parametrize("binary", ["", "AAAA", "ä", "A" * 41, "AAAA" * 1000])
def test_damaged_texts_are_forged(binary: str) -> None:
    assert refused(made(), f"sealed1 7345/16384 {KEY.id} {binary}") == "forged"


def test_a_text_opens_once() -> None:
    seal, sender = made(), made()
    first, second = sender.seal("c", "1"), sender.seal("c", "2")
    assert seal.open("c", second) == "2"
    assert seal.open("c", first) == "1"
    assert refused(seal, first) == "replayed"
    assert refused(seal, second) == "replayed"


def test_with_replayable_a_text_opens_any_number_of_times(clock: Clock) -> None:
    seal, sealed = made(), made().seal("c", "1")
    assert seal.open("c", sealed, replayable=True) == "1"
    clock.now += 1_000_000
    assert seal.open("c", sealed, replayable=True) == "1"
    assert refused(seal, sealed) == "stale"


def test_a_text_behind_the_window_is_refused() -> None:
    seal, sender = made(), made()
    texts = [sender.seal("c", str(number)) for number in range(WINDOW + 1)]
    assert seal.open("c", texts[-1]) == str(WINDOW)
    assert refused(seal, texts[0]) == "replayed"
    assert seal.open("c", texts[1]) == "1"


def test_each_channel_has_its_own_window() -> None:
    seal, sender = made(), made()
    early = sender.seal("quiet", "early")
    for _ in range(2 * WINDOW):
        seal.open("busy", sender.seal("busy", "x"))
    assert seal.open("quiet", early) == "early"


@pytest.mark.parametrize("difference", [-61_000, 61_000])
def test_a_text_of_another_time_is_stale(clock: Clock, difference: int) -> None:
    sealed = made().seal("c", "x")
    clock.now += difference
    seal = made()
    assert refused(seal, sealed) == "stale"


def test_a_clock_that_differs_less_is_accepted(clock: Clock) -> None:
    seal, sender = made(), made()
    clock.now += 50_000
    sealed = sender.seal("c", "x")
    clock.now -= 50_000
    assert seal.open("c", sealed) == "x"


def test_a_recorded_text_does_not_open_in_a_process_that_starts_later(clock: Clock) -> None:
    sealed = made().seal("c", "x")
    clock.now += 5_000
    assert refused(made(), sealed) == "stale"


def test_a_text_does_not_open_again_after_its_sender_was_forgotten(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SENDERS", 10)
    seal = made()
    texts = []
    for _ in range(30):
        clock.now += 100
        texts.append(made().seal("c", "x"))
        assert seal.open("c", texts[-1]) == "x"
    assert len(seal._senders) == 10
    assert {refused(seal, text) for text in texts} == {"stale", "replayed"}


def test_silent_senders_are_forgotten(clock: Clock) -> None:
    seal = made()
    for _ in range(30):
        seal.open("c", made().seal("c", "x"))
    clock.now += 130_000
    seal.open("c", made().seal("c", "x"))
    assert len(seal._senders) == 1


def test_a_text_does_not_open_again_when_the_clock_is_set_back(clock: Clock) -> None:
    """Its sender has been forgotten meanwhile."""
    seal, sealed = made(), made().seal("c", "x")
    assert seal.open("c", sealed) == "x"
    clock.now += 130_000
    assert seal.open("c", made().seal("c", "y")) == "y"
    clock.now -= 100_000
    assert refused(seal, sealed) == "stale"


def test_texts_open_although_the_clock_was_wrong_at_the_start(clock: Clock) -> None:
    """A machine's clock may be an hour ahead until NTP sets it."""
    sender = made()
    clock.now += 3_600_000
    seal = made()
    clock.now -= 3_600_000
    before = sender.seal("c", "before")
    clock.now += 5_000
    assert seal.open("c", sender.seal("c", "x")) == "x"
    assert refused(seal, before) == "stale"


def test_what_cannot_be_opened_leaves_no_memory() -> None:
    seal = made()
    for _ in range(30):
        assert refused(seal, made().seal("other", "x")) == "forged"
    assert not seal._senders


def test_the_first_key_seals_and_all_open() -> None:
    old, new, both = made(KEY), made(OTHER), made(OTHER, KEY)
    assert both.open("c", old.seal("c", "1")) == "1"
    assert both.open("c", new.seal("c", "2")) == "2"
    assert new.open("c", both.seal("c", "3")) == "3"
    both.use(both.identity, [OTHER])
    assert refused(both, old.seal("c", "4")) == "unknown_key"


def test_a_repeated_text_is_refused_after_the_keys_were_read_again() -> None:
    seal, sealed = made(), made().seal("c", "x")
    seal.open("c", sealed)
    seal.use(seal.identity, [OTHER, KEY])
    assert refused(seal, sealed) == "replayed"


def test_a_forked_process_is_another_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    sender, seal = made(), made()
    parents = sender.seal("c", "parent")
    monkeypatch.setattr(os, "getpid", lambda: -1)
    childs = sender.seal("c", "child")
    assert seal.open("c", parents) == "parent"
    assert seal.open("c", childs) == "child"
    assert len(seal._senders) == 2


def test_a_key_is_not_shown() -> None:
    assert "secret" not in repr(KEY)
    assert Key.from_text("x" * 32) == Key.from_text("x" * 32) != Key.from_text("y" * 32)


@pytest.mark.parametrize("identity", ["", "a b", "x" * (MAX_IDENTITY + 1), "ä"])
def test_an_identity_is_short_and_printable(identity: str) -> None:
    with pytest.raises(ValueError, match="identity"):
        Seal().use(identity, [KEY])
