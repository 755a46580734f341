"""Samples of long parametrisations: `make test` runs a few of the cases, `make nightly` all of them."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def sampled(cases: Iterable[Any], daily: Callable[[Any], bool]) -> list[Any]:
    """The parameters ``cases``, marked ``nightly`` except those that ``daily`` picks. A tuple is several parameters."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if daily(case) else pytest.mark.nightly)
        for case in cases
    ]
