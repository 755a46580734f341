"""The command ``types``: TypeScript declarations for watched tables."""

import difflib
from pathlib import Path

import click

from socketio_pg.cli.command import FAILED, Failure, Misuse, examples, names, open_database
from socketio_pg.cli.terminal import clean, tell
from socketio_pg.core import loading
from socketio_pg.postgres.database import session
from socketio_pg.postgres.trust import verify
from socketio_pg.typescript.catalog import Catalog, read
from socketio_pg.typescript.declarations import declarations
from socketio_pg.typescript.values import Options

#: The most lines that ``--check`` shows of a difference.
MAX_LINES = 40


@click.command(
    epilog=examples(
        "socketio-pg types --output src/tables.ts",
        "socketio-pg types --output src/tables.ts --check",
        "socketio-pg types --schema public --schema shop --integers bigint",
    )
)
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Write this file.")
@click.option("--check", is_flag=True, help="Write nothing; fail if the file of --output is not up to date. For CI.")
@click.option("--schema", multiple=True, help="Only tables of these schemas; comma-separated or repeated.")
@click.option(
    "--integers",
    type=click.Choice(["number", "string", "bigint"]),
    default="number",
    show_default=True,
    help="Type of integers that can exceed 2^53, as the option 'integers' of createClient.",
)
@click.option("--non-finite", is_flag=True, help="Include the strings that stand for NaN and infinity in numbers.")
def types(output: Path | None, check: bool, schema: tuple[str, ...], integers: str, non_finite: bool) -> None:
    """Write TypeScript for watched tables.

    Declares rows, primary keys and changes of each watched table, and the map of channels for createClient. The result
    depends on tables and watches only, so commit it, and run --check in CI.
    """
    if check and output is None:
        raise Misuse("--check needs --output: the file to compare")
    schemas = names(schema)
    database = open_database(loading.load())
    with session(database, "cli types") as connection:
        verify(database, connection)
        catalog = read(connection, schemas)
    _warn(catalog, schemas)
    text = declarations(catalog, Options(integers, non_finite))
    if output is None:
        click.echo(text.encode(), nl=False)
    elif check:
        _compare(output, text)
    else:
        _write(output, text)


def _warn(catalog: Catalog, schemas: list[str] | None) -> None:
    if not catalog.tables:
        where = "" if schemas is None else f" in {', '.join(schemas)}"
        tell(f"note: no table is watched{where}", error=True)
    for table in catalog.tables:
        for watch in table.watches:
            if watch.problem is not None:
                name = f"{table.schema}.{table.name}"
                tell(f"note: the watch of {name} for {watch.channel} sends no rows: {watch.problem}", error=True)


def _read(path: Path) -> str | None:
    """Return the text of a file, None if there is none."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"{path} cannot be read: {error}") from None


def _write(path: Path, text: str) -> None:
    if _read(path) == text:
        tell(f"{path} is up to date", error=True)
        return
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}") from None
    tell(f"wrote {path}", error=True)


def _compare(path: Path, text: str) -> None:
    found = _read(path)
    if found == text:
        tell(f"{path} is up to date", error=True)
        return
    lines = list(
        difflib.unified_diff((found or "").splitlines(), text.splitlines(), str(path), "the database", lineterm="", n=1)
    )
    for line in lines[:MAX_LINES]:
        click.echo(clean(line))
    if len(lines) > MAX_LINES:
        click.echo(f"… and {len(lines) - MAX_LINES} more lines")
    state = "does not exist" if found is None else "is not up to date"
    tell(f"{path} {state}: run 'socketio-pg types --output {path}'", error=True)
    raise click.exceptions.Exit(FAILED)
