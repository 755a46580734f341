"""Handling of programs that may be missing on a developer's machine, but not on CI."""

import os
from typing import NoReturn

import pytest


def missing(what: str, how: str) -> NoReturn:
    """Skip the test, with a hint how to install the program. Fail on CI, where skips are not noticed."""
    message = f"{what} did NOT run: {how}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
