"""Programs that a developer's machine may lack, and CI may not."""

import os
from typing import NoReturn

import pytest


def missing(what: str, how: str) -> NoReturn:
    """Skip loudly and say how to get it; on CI, where nobody would read the skip, fail."""
    message = f"{what} did NOT run: {how}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
