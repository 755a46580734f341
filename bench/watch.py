"""`python bench/watch.py`: measures the cost of a watched table for its writers, relative to an unwatched one."""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

# `python bench/watch.py` puts bench/ first on the path; make the package `bench` importable instead.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import log_database, machine  # noqa: E402
from bench.log_database import connect  # noqa: E402

TABLE = """
CREATE TABLE {name} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer integer NOT NULL,
    total numeric(12, 2) NOT NULL,
    note text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
)
"""
#: The options of watch() for each variant; `plain` is not watched.
SINGLE: dict[str, str | None] = {
    "plain": None,
    "per statement": "",
    "per row": ", per => 'row'",
    "notify": ", tier => 'notify'",
    "when": ", \"when\" => 'new.customer >= 0'",
    "own channels": ", channel => 'orders:{customer}'",
}
BULK: dict[str, str | None] = {
    "plain": None,
    "default: one message": "",
    "some columns excluded": ", exclude => '{note}'",
    "own channels": ", channel => 'orders:{customer}'",
    "no limit: each row": ", bulk_limit => NULL",
}
#: Runs with a tenth of the rows, because it is slow.
BULK_PER_ROW: dict[str, str | None] = {"plain": None, "per row": ", per => 'row'"}


class Tables:
    """One table per variant, identical except for the watch. No relay runs: the outbox is truncated in between."""

    def __init__(self, connection: Any, variants: dict[str, str | None], rows: int) -> None:
        self._connection = connection
        self.names = {variant: f"orders_{number}" for number, variant in enumerate(variants)}
        for variant, name in self.names.items():
            self.run(TABLE.format(name=name))
            self.run(
                f"INSERT INTO {name} (customer, total, note)"
                f" SELECT n % 100, n, 'bench' FROM generate_series(1, {rows}) AS n"
            )
            if variants[variant] is not None:
                self.run(f"SELECT socketio_pg.watch('{name}'{variants[variant]})")

    def run(self, statement: str) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(statement)

    def clean_up(self, *names: str) -> None:
        """Remove the leftovers of the last measurement."""
        self.run("TRUNCATE socketio_pg.outbox")
        for name in names:
            self.run(f"VACUUM {name}")
        self.run("CHECKPOINT")

    def compare(self, rounds: int, write: Callable[[str], int]) -> dict[str, list[float]]:
        """Return the seconds per statement of ``write(table)``, which returns their number: a list for each variant."""
        found: dict[str, list[float]] = {variant: [] for variant in self.names}
        for turn in range(rounds + 1):
            order = list(self.names.items())
            # Rotates the order, so that no variant always follows the same other.
            for variant, name in order[turn % len(order) :] + order[: turn % len(order)]:
                self.clean_up(name)
                began = time.perf_counter()
                count = write(name)
                seconds = time.perf_counter() - began
                # The first round is a warm-up of plans and pages.
                if turn:
                    found[variant].append(seconds / count)
        return found


def show(title: str, found: dict[str, list[float]]) -> None:
    print(f"\n{title}")
    for variant, times in found.items():
        ratios = [mine / plain for mine, plain in zip(times, found["plain"], strict=True)]
        print(
            f"  {variant:24} {median(times) * 1e3:10.3f} ms   x {median(ratios):6.2f}"
            f"   (lowest {min(ratios):.2f}, highest {max(ratios):.2f})"
        )


def single(url: str, rounds: int, statements: int) -> None:
    """Measure statements of one row: each in its own transaction, and many in one."""
    with closing(connect(url)) as connection:
        tables = Tables(connection, SINGLE, statements)

        def insert(name: str) -> int:
            for number in range(statements):
                tables.run(f"INSERT INTO {name} (customer, total, note) VALUES ({number % 100}, {number}, 'bench')")
            return statements

        def update(name: str) -> int:
            for number in range(1, statements + 1):
                tables.run(f"UPDATE {name} SET total = total + 1, note = 'updated' WHERE id = {number}")
            return statements

        for statement, write in (("INSERT", insert), ("UPDATE", update)):
            show(f"{statement} of a row, one transaction each", tables.compare(rounds, write))

            def together(name: str, write: Callable[[str], int] = write) -> int:
                tables.run("BEGIN")
                count = write(name)
                tables.run("COMMIT")
                return count

            show(f"{statement} of a row, {statements} in one transaction", tables.compare(rounds, together))


def loop(url: str, rounds: int, statements: int) -> None:
    """Measure many statements of one row that a single PL/pgSQL block runs: the watch without any round trip."""
    with closing(connect(url)) as connection:
        tables = Tables(connection, SINGLE, statements)

        def update(name: str) -> int:
            tables.run(
                f"DO $$ BEGIN FOR n IN 1 .. {statements} LOOP"
                f" UPDATE {name} SET total = total + 1 WHERE id = n; END LOOP; END $$"
            )
            return statements

        show(f"UPDATE of a row, {statements} in a PL/pgSQL loop", tables.compare(rounds, update))


def bulk(url: str, rounds: int, rows: int) -> None:
    """Measure one statement that changes many rows."""
    with closing(connect(url)) as connection:
        for variants, count in ((BULK, rows), (BULK_PER_ROW, rows // 10)):
            tables = Tables(connection, variants, count)

            def update(name: str, tables: Tables = tables) -> int:
                tables.run(f"UPDATE {name} SET total = total + 1")
                return 1

            show(f"UPDATE of {count} rows in one statement", tables.compare(rounds, update))
            for name in tables.names.values():
                tables.run(f"DROP TABLE {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--statements", type=int, default=1000)
    parser.add_argument("--loop", type=int, default=20_000)
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    busy = machine.wait_until_idle(0.1, 30)
    with log_database.running() as cluster:
        print(
            f"PostgreSQL {cluster.version_number()}, fdatasync {cluster.fdatasync_us():.0f} us,"
            f" machine busy with other processes before: {busy:.0%}; medians of {options.rounds} rounds"
        )
        with cluster.database("watch_single") as url:
            single(url, options.rounds, options.statements)
        with cluster.database("watch_loop") as url:
            loop(url, options.rounds, options.loop)
        with cluster.database("watch_bulk") as url:
            bulk(url, options.rounds, options.rows)


if __name__ == "__main__":
    main()
