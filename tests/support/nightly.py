"""Sampling of long parametrisations: `make test` runs a few cases, `make nightly` all of them."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def sampled(cases: Iterable[Any], daily: Callable[[Any], bool]) -> list[Any]:
    """Return the parameters ``cases``, marked ``nightly`` unless ``daily`` picks them. A tuple is one case."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if daily(case) else pytest.mark.nightly)
        for case in cases
    ]
