"""Channel names: validation, quoting in SQL, patterns."""

import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from socketio_pg.core.channels import MAX_CHANNEL_BYTES, match_pattern, quote_identifier, validate_channel
from socketio_pg.core.errors import InvalidChannelError

#: All code points, including lone surrogates, which JSON can contain.
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=70)
#: The same, with a higher share of characters that the rules mention.
TRICKY_TEXT = st.text(
    st.one_of(st.sampled_from(" *\"'\\;\n\0\t\x7f\x85\xa0\u2028\u202eéß€😀a"), st.characters(exclude_categories=())),
    max_size=70,
)

ALLOWED = {
    "one letter": "a",
    "mixed case": "Foo",
    "upper case": "FOO",
    "digits first": "1st",
    "space inside": "a room",
    "double quote": 'say "hi"',
    "only a double quote": '"',
    "single quote": "o'brien",
    "backslash": "a\\b",
    "dollar": "$1 $$",
    "percent": "100% %s %(x)s",
    "colon": ":name a::b",
    "SQL": "x; DROP TABLE users; --",
    "SQL out of quotes": '"; DROP TABLE users; --',
    "SQL comment": "a -- b",
    "keyword": "select",
    "dot": "schema.table",
    "slash": "/rooms/1",
    "prefix inside": "my_socketio_pg",
    "prefix cut short": "socketio_p",
    "prefix in another case": "SOCKETIO_PG",
    "German": "Straße",
    "Cyrillic": "канал",
    "Hebrew, right to left": "ערוץ",
    "Arabic, right to left": "قناة",
    "right-to-left override": "a\u202eb",
    "emoji": "😀",
    "emoji with joiner": "👩\u200d🚀",
    "NFC": unicodedata.normalize("NFC", "é"),
    "NFD": unicodedata.normalize("NFD", "é"),
    "line separator inside": "a\u2028b",
    "63 bytes": "a" * 63,
    "63 bytes of three-byte characters": "€" * 21,
    "62 bytes of two-byte characters": "é" * 31,
    "63 bytes, the last one an emoji": "a" * 59 + "😀",
}

REFUSED = {
    "empty": ("", "empty"),
    "64 bytes": ("a" * 64, "63 bytes"),
    "64 bytes of two-byte characters": ("é" * 32, "has 64"),
    "66 bytes of three-byte characters": ("€" * 22, "has 66"),
    "64 bytes, the last one an emoji": ("a" * 60 + "😀", "has 64"),
    "very long": ("a" * 100_000, "has 100000"),
    "NUL": ("a\0b", "control"),
    "only NUL": ("\0", "control"),
    "newline": ("a\nb", "control"),
    "newline at the end": ("a\n", "control"),
    "carriage return": ("a\rb", "control"),
    "tab": ("a\tb", "control"),
    "escape": ("\x1b[31m", "control"),
    "delete": ("a\x7f", "control"),
    "C1 control": ("a\x85b", "control"),
    "space": (" ", "space"),
    "leading space": (" a", "space"),
    "trailing space": ("a ", "space"),
    "trailing no-break space": ("a\u00a0", "space"),
    "leading ideographic space": ("\u3000a", "space"),
    "trailing line separator": ("a\u2028", "space"),
    "star": ("*", r"\*"),
    "star inside": ("rooms.*", r"\*"),
    "reserved": ("socketio_pg", "reserved"),
    "reserved prefix": ("socketio_pg_bell", "reserved"),
    "reserved prefix without a separator": ("socketio_pgx", "reserved"),
    "lone high surrogate": ("a\ud800", "surrogate"),
    "lone low surrogate": ("\udc00", "surrogate"),
    "surrogates the wrong way round": ("\ude00\ud83d", "surrogate"),
}

NOT_STRINGS: list[tuple[object, str]] = [
    (None, "null"),
    (True, "a boolean"),
    (False, "a boolean"),
    (0, "a number"),
    (17, "a number"),
    (1.5, "a number"),
    ([], "a list"),
    (["foo"], "a list"),
    ({}, "an object"),
    ({"channel": "foo"}, "an object"),
    (b"foo", "binary data"),
    (bytearray(b"foo"), "binary data"),
]


@pytest.mark.parametrize("name", ALLOWED.values(), ids=ALLOWED.keys())
def test_valid_name_is_accepted(name: str) -> None:
    assert validate_channel(name) == name


@pytest.mark.parametrize(("name", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_invalid_name_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(InvalidChannelError, match=reason) as caught:
        validate_channel(name)
    # The message and the channel, if set, are sent to the client: both must be valid UTF-8, and the message short.
    assert len(caught.value.message.encode()) < 200
    assert caught.value.channel is None or caught.value.channel.encode() == name.encode()


@pytest.mark.parametrize(("value", "description"), NOT_STRINGS, ids=[repr(value) for value, _ in NOT_STRINGS])
def test_name_must_be_a_string(value: object, description: str) -> None:
    with pytest.raises(InvalidChannelError, match=f"must be a string, not {description}$"):
        validate_channel(value)


def test_composed_and_decomposed_names_are_different() -> None:
    composed, decomposed = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")
    assert validate_channel(composed) != validate_channel(decomposed)


def is_allowed(name: str) -> bool:
    """A second, simple implementation of the rules."""
    if any(0xD800 <= ord(character) <= 0xDFFF for character in name):
        return False
    if any(ord(character) < 0x20 or 0x7F <= ord(character) <= 0x9F for character in name):
        return False
    if name == "" or name[0].isspace() or name[-1].isspace():
        return False
    return len(name.encode()) <= 63 and "*" not in name and not name.startswith("socketio_pg")


def unquote_identifier(quoted: str) -> str:
    """Parse a quoted identifier like PostgreSQL (manual, "Identifiers and Key Words"): ``""`` is one quote."""
    inside = re.fullmatch(r'"((?:[^"]|"")+)"', quoted)
    assert inside is not None, f"{quoted!r} is not one quoted identifier"
    return inside[1].replace('""', '"')


@given(st.one_of(ANY_TEXT, TRICKY_TEXT, st.text(max_size=5).map("socketio_pg".__add__)))
@example("€" * 21)
@example("€" * 21 + "a")
def test_accepted_name_survives_quoting(name: str) -> None:
    try:
        accepted = validate_channel(name)
    except InvalidChannelError:
        assert not is_allowed(name)
        return
    assert is_allowed(name)
    assert accepted == name
    assert len(accepted.encode()) <= MAX_CHANNEL_BYTES
    assert unquote_identifier(quote_identifier(accepted)) == name


@pytest.mark.parametrize(
    ("name", "quoted"),
    [("foo", '"foo"'), ("Foo", '"Foo"'), ('"', '""""'), ('a"b""c', '"a""b""""c"'), ("o'brien", '"o\'brien"')],
)
def test_quote_identifier(name: str, quoted: str) -> None:
    assert quote_identifier(name) == quoted


@pytest.mark.parametrize(
    ("pattern", "channel", "matches"),
    [
        ("foo", "foo", True), ("foo", "foo2", False), ("*", "anything", True), ("a*", "a", True), ("*a", "ba", True),
        ("a*a", "a", False), ("a*a", "aa", True), ("a*b*c", "a-b-b-c", True), ("a*b*c", "a-c-b", False),
        ("a**c", "ac", True), ("orders:*", "orders:", True), ("orders:*", "order:1", False), ("a.c", "abc", False),
    ],
)  # fmt: skip
def test_match_pattern(pattern: str, channel: str, matches: bool) -> None:
    assert match_pattern(pattern, channel) is matches


@given(st.text("ab*", max_size=8), st.text("ab", max_size=8))
def test_match_pattern_agrees_with_a_regular_expression(pattern: str, channel: str) -> None:
    expression = ".*".join(map(re.escape, pattern.split("*")))
    assert match_pattern(pattern, channel) is (re.fullmatch(expression, channel, re.DOTALL) is not None)
