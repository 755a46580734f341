"""The result types of the doctor's checks."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: a sentence ``found``, and a ``remedy`` unless the check passed."""

    check: str
    level: Literal["ok", "warning", "error"]
    found: str
    remedy: str | None = None


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def warning(check: str, found: str, remedy: str) -> Finding:
    """Return a finding about something that works, but not for all clients, not safely, or not for long."""
    return Finding(check, "warning", found, remedy)


def error(check: str, found: str, remedy: str) -> Finding:
    """Return a finding about something that does not work."""
    return Finding(check, "error", found, remedy)
