"""The texts that a CHECK constraint permits, read from the form in which PostgreSQL writes constraints. No I/O."""

import re
from collections.abc import Iterable

_TEXT = r"(?:text|character varying)"
_ITEM = rf"\(?'(?:[^']|'')*'::{_TEXT}\)?(?:::text)?"
_ITEMS = re.compile(rf"'((?:[^']|'')*)'::{_TEXT}")


def permitted_labels(definitions: Iterable[str], subject: str) -> tuple[str, ...] | None:
    """Return the texts of ``CHECK (subject IN ('a', 'b'))``, in order; None unless a constraint has this form.

    ``definitions`` are results of ``pg_get_constraintdef()``, ``subject`` the quoted column, or ``VALUE`` of a domain.
    """
    name = re.escape(subject)
    listed = re.compile(
        rf"CHECK \(\((?:{name}|\({name}\)::text) = ANY \(\(?ARRAY\[({_ITEM}(?:, {_ITEM})*)\]\)?(?:::text\[\])?\)\)\)"
    )
    for definition in definitions:
        found = listed.fullmatch(definition)
        if found is not None:
            return tuple(text.replace("''", "'") for text in _ITEMS.findall(found[1]))
    return None
