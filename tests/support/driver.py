"""How psycopg2 waits in the process of the tests. It has one wait callback for all connections."""

import contextlib
import select
import threading
from collections.abc import Iterator
from typing import Any

import psycopg2.extensions

from socketio_pg.postgres import database


def wait_green_here() -> None:
    """Let psycopg2 wait in green threads, as in a server, in the calling thread of the system; elsewhere without them.

    Otherwise each other thread would get an event loop, whose descriptors stay open when the thread ends.
    """
    green, here = database._wait, threading.get_native_id()

    def wait(connection: Any) -> None:
        try:
            (green if threading.get_native_id() == here else _wait)(connection)
        except BaseException:
            del connection  # as `green` does, so that the traceback keeps no connection open
            raise

    database._wait = wait  # PubSub and the commands set the callback again
    database.wait_green()


def _wait(connection: Any) -> None:
    """A wait callback without green threads."""
    while (state := connection.poll()) != psycopg2.extensions.POLL_OK:
        poll = select.poll()
        reading = state == psycopg2.extensions.POLL_READ
        poll.register(connection.fileno(), select.POLLIN if reading else select.POLLOUT)
        poll.poll()


@contextlib.contextmanager
def blocking_driver() -> Iterator[None]:
    """Let psycopg2 wait as in a program without green threads."""
    callback = psycopg2.extensions.get_wait_callback()
    psycopg2.extensions.set_wait_callback(None)
    try:
        yield
    finally:
        psycopg2.extensions.set_wait_callback(callback)
