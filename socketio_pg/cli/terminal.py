"""Output of the command line: colours and tables on a terminal, plain text in pipes, JSON for programs."""

import contextlib
import decimal
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import click
import orjson

#: Unicode's category Cc without tab: names and messages are untrusted, and may contain a terminal's control sequences.
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f]")


def clean(text: object) -> str:
    """Replace control characters in ``text`` by U+FFFD."""
    return _CONTROL.sub("\ufffd", str(text))


def is_colourful() -> bool:
    """Return whether standard output is a terminal with colours enabled (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def say(text: str = "", *, error: bool = False) -> None:
    """Print one line, with styles only where colours are enabled."""
    stream = sys.stderr if error else sys.stdout
    click.echo(text, err=error, color=None if stream.isatty() and not os.environ.get("NO_COLOR") else False)


def abandon_output() -> None:
    """Discard standard output after its reader has gone, including buffered text that would be flushed at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def json_text(value: Any) -> str:
    """Return ``value`` as compact JSON; :class:`orjson.Fragment` is inserted unchanged, other types become strings.

    Numbers keep their digits if they are integers or :class:`decimal.Decimal`.
    """
    try:
        return orjson.dumps(value, default=_plain).decode()
    except TypeError:  # an integer over 64 bits
        return orjson.dumps(_without_large_integers(value), default=_plain).decode()


def _plain(value: object) -> object:
    return orjson.Fragment(str(value)) if isinstance(value, decimal.Decimal) else str(value)


def _without_large_integers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_large_integers(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_large_integers(one) for one in value]
    large = isinstance(value, int) and not -(2**63) <= value < 2**64
    return orjson.Fragment(str(value)) if large else value


def print_json(value: Any) -> None:
    """Print one line of JSON in UTF-8, and flush it."""
    click.echo(json_text(value).encode())


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table with a header: styled on a terminal, aligned plain text in a pipe."""
    cells = [["" if cell is None else clean(cell) for cell in row] for row in rows]
    if is_colourful():
        _rich_table(columns, cells)
        return
    lines = [[column.upper() for column in columns], *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    # Imported here because it is slow to import and used only on a terminal.
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    Console().print(made)


def age(seconds: float | None) -> str:
    """Format ``seconds`` for people: ``0.3 s``, ``42 s``, ``5 min``, ``3.1 h``, ``2.0 d``."""
    if seconds is None:
        return ""
    for limit, unit, size in ((10, "s", 1.0), (120, "s", 1.0), (7200, "min", 60.0), (172_800, "h", 3600.0)):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}" if limit in (10, 172_800) else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.1f} d"
