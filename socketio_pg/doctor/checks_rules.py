"""The doctor's check of the rules for channels: invalid ones, contradictions, and those that nothing follows."""

from collections.abc import Iterator
from typing import Any

from socketio_pg.core.config import Settings
from socketio_pg.core.rules import Rules, contradictions
from socketio_pg.doctor.findings import Finding, error, ok, warning
from socketio_pg.log.rule_rows import RULES, parse_rows
from socketio_pg.postgres.database import fetch

_REMEDY = "change the row of socketio_pg.rule, or CHANNEL_RULES (docs/rules.md)"


def rules(connection: Any, settings: Settings) -> Iterator[Finding]:
    """Check the rules of the table together with those of the setting."""
    [(installed,)] = fetch(connection, "SELECT to_regclass('socketio_pg.rule') IS NOT NULL")
    table, problems = parse_rows(fetch(connection, RULES) if installed else ())
    for problem in problems:
        yield error("rules", f"servers do not use a rule: {problem}", _REMEDY)
    found = Rules.of_settings(settings)
    found.replace(table)
    contradicting = contradictions(found, settings.max_payload)
    for pattern, problem in contradicting:
        yield warning("rules", f"the rule '{pattern}' {problem}", _REMEDY)
    if not problems and not contradicting:
        count = len(found.patterns())
        yield ok("rules", "no rules for channels" if not count else f"{count} patterns with rules for channels")
