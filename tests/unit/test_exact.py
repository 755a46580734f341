"""The option `integers` of the client for browsers: it reads long integers exactly, and leaves all else alone."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.bundles import PACKAGE, build_package

SAFE = 2**53 - 1
INTEGERS = st.one_of(st.integers(), st.integers(SAFE - 2, SAFE + 3), st.integers(-SAFE - 3, -SAFE + 2))
#: Texts that look like numbers, or like the marks that the client puts into texts.
TEXTS = st.one_of(
    st.text(),
    st.sampled_from(
        ["9007199254740993", '"9007199254740993', "\0n:9007199254740993", "\0s:", "\0", "\\", '\\"', "__proto__"]
    ),
    st.integers(10**15).map(str),
)
FLOATS = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([1e20, -1e16, 9007199254740993.5]))
VALUES = st.recursive(
    st.one_of(INTEGERS, TEXTS, FLOATS, st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=6,
)

#: The values so far, for one process of Node.
recorded: list[Any] = []


def expected(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > SAFE:
        return {"exact": str(value)}
    if isinstance(value, list):
        return [expected(one) for one in value]
    return {key: expected(one) for key, one in value.items()} if isinstance(value, dict) else value


def number(digits: str) -> int | float:
    """JavaScript writes large floats with the digits of integers."""
    return int(digits) if abs(int(digits)) <= SAFE else float(digits)


@given(VALUES)
def test_values_are_recorded(value: Any) -> None:
    assert json.loads(json.dumps(value)) == value
    recorded.append(value)


@pytest.mark.parametrize("spaces", [None, (" , ", " : ")], ids=["compact", "spaces"])
def test_long_integers_are_exact(spaces: tuple[str, str] | None) -> None:
    # In this order by the file; alone, a few values take the place of the recorded ones.
    values = recorded or [{"id": 9007199254740993, "\0n:5": "\0n:6", "f": 1e20}, [-(10**30)], 9007199254740992]
    build_package()
    lines = [json.dumps(value, separators=spaces or (",", ":")) for value in values]
    done = subprocess.run(
        ["node", str(Path(__file__).with_name("exact.mjs")), str(PACKAGE / "dist" / "exact.js")],
        input="\n".join(lines), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line, parse_int=number) for line in done.stdout.rstrip("\n").split("\n")]
    assert len(answers) == len(values)
    for value, line, found in zip(values, lines, answers, strict=True):
        assert found == [expected(value)] * len(found), line
