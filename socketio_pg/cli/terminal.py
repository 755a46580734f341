"""How the command line prints: colours and tables for people, plain text for pipes, JSON for programs."""

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import click
import orjson

from socketio_pg.core.messages import dumps_strict

#: What a terminal might take for commands: names and messages come from strangers. Unicode's category Cc but tab.
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f]")


def clean(text: object) -> str:
    """``text`` without control characters: U+FFFD stands in their place."""
    return _CONTROL.sub("\ufffd", str(text))


def is_colourful() -> bool:
    """Whether standard output is a person's terminal that wants colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def say(text: str = "", *, error: bool = False) -> None:
    """One line; styles go only where there are colours."""
    stream = sys.stderr if error else sys.stdout
    click.echo(text, err=error, color=None if stream.isatty() and not os.environ.get("NO_COLOR") else False)


def abandon_output() -> None:
    """Nobody reads it any more: what is not written yet need not be, at the end of the process either."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def json_text(value: Any) -> str:
    """``value`` as compact JSON; text of :class:`orjson.Fragment` goes as it is, what JSON does not know as text."""
    try:
        return orjson.dumps(value, default=str).decode()
    except TypeError:  # an integer of over 64 bits
        return dumps_strict(value)


def print_json(value: Any) -> None:
    """One line of JSON in UTF-8, written out at once."""
    click.echo(json_text(value).encode())


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table with a line of ``columns``: with colours on a terminal, in a pipe columns of text and nothing else."""
    cells = [["" if cell is None else clean(cell) for cell in row] for row in rows]
    if is_colourful():
        _rich_table(columns, cells)
        return
    lines = [[column.upper() for column in columns], *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    # Here, because only people need it: it takes a while to be imported.
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
    """``seconds`` as a person says them: ``0.3 s``, ``42 s``, ``5 min``, ``3.1 h``, ``2.0 d``."""
    if seconds is None:
        return ""
    for limit, unit, size in ((10, "s", 1.0), (120, "s", 1.0), (7200, "min", 60.0), (172_800, "h", 3600.0)):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}" if limit in (10, 172_800) else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.1f} d"
