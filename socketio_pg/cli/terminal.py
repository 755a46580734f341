"""Output of the command line: colours and tables on a terminal, plain text in pipes, JSON for programs."""

import codecs
import contextlib
import decimal
import io
import os
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import Any

import click
import orjson

#: Unicode's category Cc without tab: names and messages are untrusted, and may contain a terminal's control sequences.
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f]")


def clean(text: object) -> str:
    """Replace control characters in ``text`` by U+FFFD."""
    return _CONTROL.sub("\ufffd", str(text))


def say(text: str = "", *, error: bool = False) -> None:
    """Print one line, with styles only where colours are enabled."""
    stream = sys.stderr if error else sys.stdout
    click.echo(text, err=error, color=None if stream.isatty() and not os.environ.get("NO_COLOR") else False)


def escape_unencodable() -> None:
    """Print characters that a terminal's encoding lacks as ``\\u2192``, as Python does on standard error."""
    if isinstance(sys.stdout, io.TextIOWrapper) and codecs.lookup(sys.stdout.encoding).name != "utf-8":
        sys.stdout.reconfigure(errors="backslashreplace")


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


def width(*, error: bool = False) -> int | None:
    """Return the number of columns of the terminal; None without a terminal, where lines have no limit."""
    return shutil.get_terminal_size().columns if (sys.stderr if error else sys.stdout).isatty() else None


def wrapped(text: str, first: int, indent: int, *, error: bool = False) -> str:
    """Break ``text`` between words at the terminal's width.

    Its first line begins in column ``first``, which is not part of the result, and the others in ``indent``. A word
    that is longer than a line, such as an address, stays in one piece.
    """
    columns = width(error=error)
    if columns is None:
        return text
    lines = textwrap.wrap(
        text, max(columns - 1, indent + 20), initial_indent=" " * first, subsequent_indent=" " * indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return "\n".join(lines)[first:]


def tell(text: str, *, error: bool = False) -> None:
    """Print a sentence, which is broken between words on a terminal."""
    say(wrapped(clean(text), 0, 0, error=error), error=error)


def entry(name: str, text: str, indent: int = 14) -> None:
    """Print a name and a text that begins in column ``indent``."""
    name = f"{name:{indent - 2}}"
    say(f"{click.style(name, bold=True)}  {wrapped(clean(text), len(name) + 2, indent)}")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table with a header. A list is a cell with its items.

    In a pipe each row is one line, and has all columns. On a terminal empty columns are left out, and cells are wrapped
    between words. Where even that is too wide, each row is printed as a block, with a line for each cell.
    """
    lines = [[_texts(cell) for cell in row] for row in rows]
    columns_of_terminal = width()
    if columns_of_terminal is None:
        _plain_table(columns, [[",".join(cell) for cell in line] for line in lines])
        return
    used = [index for index in range(len(columns)) if any(line[index] for line in lines)]
    columns = [columns[index].replace("_", " ") for index in used]
    cells = [[", ".join(line[index]) for index in used] for line in lines]
    widths = column_widths([columns, *cells], columns_of_terminal - 1 - GUTTER * (len(columns) - 1))
    if widths is not None:
        _wrapped_table(columns, cells, widths)
        return
    longest = max(map(len, columns))
    for line in cells:
        entry(columns[0], line[0], longest + 2)
        for name, cell in zip(columns[1:], line[1:], strict=True):
            if cell:
                entry(f"  {name}", cell, longest + 4)


#: Spaces between two columns.
GUTTER = 2


def column_widths(lines: Sequence[Sequence[str]], limit: int) -> list[int] | None:
    """Return the width of each column of a table so that the sum is at most ``limit`` and no word is broken.

    Returns None if that is impossible.
    """
    cells_of = list(zip(*lines, strict=True))
    narrowest = [max(_cells(word) for cell in cells for word in cell.split() or [""]) for cells in cells_of]
    widest = [max(map(_cells, cells)) for cells in cells_of]
    left = limit - sum(narrowest)
    if left < 0:
        return None
    widths = list(narrowest)
    # The columns that need the least first, so that as many as possible need no second line.
    for index in sorted(range(len(widths)), key=lambda index: widest[index] - narrowest[index]):
        more = min(left, widest[index] - narrowest[index])
        widths[index] += more
        left -= more
    return widths


def _texts(cell: object) -> list[str]:
    items = cell if isinstance(cell, list) else [] if cell is None else [cell]
    return [clean(item) for item in items]


def _cells(text: str) -> int:
    """Return the number of a terminal's cells that ``text`` takes: two for each East Asian wide character."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = [[column.upper() for column in columns], *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _wrapped_table(columns: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]) -> None:
    # Imported here because it is slow to import and used only on a terminal.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, header_style="bold", pad_edge=False, padding=(0, GUTTER, 0, 0))
    for column, width in zip(columns, widths, strict=True):
        made.add_column(Text(column), width=width)
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(made)


class Progress:
    """One line about work that takes long, on a terminal's standard error. It is replaced, and erased at the end."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def show(self, text: str) -> None:
        if self._is_shown:
            columns = shutil.get_terminal_size().columns
            click.echo(f"\r\x1b[K{clean(text)[: columns - 1]}", err=True, nl=False, color=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.show("")


def age(seconds: float | None) -> str:
    """Format ``seconds`` for people: ``0.3 s``, ``42 s``, ``5 min``, ``3.1 h``, ``2.0 d``."""
    if seconds is None:
        return ""
    for limit, unit, size in ((10, "s", 1.0), (120, "s", 1.0), (7200, "min", 60.0), (172_800, "h", 3600.0)):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}" if limit in (10, 172_800) else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.1f} d"
