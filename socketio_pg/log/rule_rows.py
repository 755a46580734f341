"""The table of rules: its query, and rules from its rows."""

from collections.abc import Iterable, Sequence
from typing import Any

from socketio_pg.core.rules import COLUMNS, MAX_RULES, Rule, parse_rule, validate_pattern

# At most so many: a mistake must not fill the memory of all servers.
RULES = f"""
SELECT pattern, {", ".join(f"extract(epoch FROM {name})::float" if name == "max_age" else name for name in COLUMNS)}
FROM socketio_pg.rule ORDER BY pattern LIMIT {MAX_RULES}
"""


def parse_rows(rows: Iterable[Sequence[Any]]) -> tuple[dict[str, Rule], list[str]]:
    """Return the rules of rows by pattern, and why others are not valid: the table's constraints were changed."""
    found: dict[str, Rule] = {}
    problems = []
    for pattern, *values in rows:
        try:
            found[validate_pattern(pattern)] = parse_rule(pattern, dict(zip(COLUMNS, values, strict=True)))
        except ValueError as error:
            problems.append(str(error))
    return found, problems
