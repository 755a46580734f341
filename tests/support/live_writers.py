"""Writers that change a watched table at random, each in a thread with transactions of its own."""

import contextlib
import random
import threading
from collections.abc import Callable

import psycopg2

#: Changes of one row of `notes`, with its key, an owner, a text, and another key.
CHANGES = (
    "INSERT INTO notes VALUES ({id}, '{owner}', '{text}') ON CONFLICT (id) DO UPDATE SET text = excluded.text",
    "INSERT INTO notes VALUES ({id}, '{owner}', '{text}') ON CONFLICT DO NOTHING",
    "UPDATE notes SET text = '{text}' WHERE id = {id}",
    "UPDATE notes SET owner = '{owner}' WHERE id = {id}",
    "UPDATE notes SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM notes WHERE id = {other})",
    "DELETE FROM notes WHERE id = {id}",
    "UPDATE notes SET text = '{text}' WHERE id BETWEEN {id} AND {id} + 3",
)


class Writers:
    """``count`` threads that write to the table ``notes`` of the database ``url`` until :meth:`stop`."""

    def __init__(self, url: str, count: int, *, owners: tuple[str, ...], pause: float = 0.005, seed: int = 0) -> None:
        self._url = url
        self._stopped = threading.Event()
        self._owners = owners
        self._pause = pause
        self.transactions = 0
        self._threads = [threading.Thread(target=self._write, args=(random.Random(seed + n),)) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def wait(self, transactions: int, until: Callable[[Callable[[], bool], str], object]) -> None:
        """Wait for some more transactions."""
        wanted = self.transactions + transactions
        until(lambda: self.transactions >= wanted, "the writers go on")

    def _write(self, chosen: random.Random) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(psycopg2.Error), contextlib.closing(psycopg2.connect(self._url)) as connection:
                while not self._stopped.is_set():
                    self._transaction(connection, chosen)

    def _transaction(self, connection: psycopg2.extensions.connection, chosen: random.Random) -> None:
        try:
            with connection.cursor() as cursor:
                for _ in range(chosen.randint(1, 3)):
                    values = {
                        "id": chosen.randint(1, 40), "other": chosen.randint(1, 40),
                        "owner": chosen.choice(self._owners), "text": chosen.choice("abc"),
                    }  # fmt: skip
                    cursor.execute(chosen.choice(CHANGES).format(**values))
                    if chosen.random() < 0.2:
                        self._stopped.wait(chosen.random() * self._pause * 4)
                if chosen.random() < 0.02:
                    cursor.execute("TRUNCATE notes" if chosen.random() < 0.5 else "DELETE FROM notes WHERE id < 20")
            if chosen.random() < 0.1:
                connection.rollback()
            else:
                connection.commit()
                self.transactions += 1
        except psycopg2.errors.DatabaseError:  # a deadlock, or a key that another writer has taken
            if connection.closed:
                raise
            connection.rollback()
        self._stopped.wait(chosen.random() * self._pause)
