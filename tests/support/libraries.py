"""Helpers for tests of the modules of both green-thread libraries."""

from typing import Any


def rounds(library: Any, count: int = 5) -> None:
    """Let the hub look at the descriptors some times."""
    for _ in range(count):
        library.sleep()
