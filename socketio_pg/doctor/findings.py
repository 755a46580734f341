"""What the doctor finds."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: ``found`` in a sentence, and the ``remedy`` of what is not in order."""

    check: str
    level: Literal["ok", "warning", "error"]
    found: str
    remedy: str | None = None


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def warning(check: str, found: str, remedy: str) -> Finding:
    """Works, but not for long, not for everybody, or not safely."""
    return Finding(check, "warning", found, remedy)


def error(check: str, found: str, remedy: str) -> Finding:
    """Does not work."""
    return Finding(check, "error", found, remedy)
