"""A short run of `make fuzz` with fixed seeds."""

from collections.abc import Iterator

import pytest

from tests import fuzz
from tests.support.server import ServerProcess


@pytest.fixture(scope="module")
def target() -> Iterator[ServerProcess]:
    with fuzz.target() as server:
        yield server


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_server_survives_fuzzed_input(target: ServerProcess, seed: int) -> None:
    before = target.worker_pids()
    acknowledged = fuzz.run(target, seed, examples=60)
    assert acknowledged > 0, "the fuzzer reaches event handlers"
    assert target.worker_pids() == before
