"""Makes psycopg 3 wait in green threads. Applications use it through SQLAlchemy; this package uses psycopg2."""

import os
import selectors
import sys

from socketio_pg.core import green

#: psycopg 3's own setting: the name of one of its wait functions. It is read when psycopg is imported.
SETTING = "PSYCOPG_WAIT_FUNC"
#: The wait functions that use modules which both libraries patch. The default waits in C, and would block all green
#: threads.
GREEN = ("wait_selector", "wait_select")


def make_green() -> None:
    """Choose a green wait function for psycopg 3, whether it is imported already or later.

    Leaves :data:`SETTING` as it is if the operator has set it. Does nothing in a process that is not patched.
    """
    if not green.is_patched():
        return
    chosen = os.environ.setdefault(SETTING, GREEN[0])
    waiting = sys.modules.get("psycopg.waiting")
    if waiting is not None and chosen in GREEN:
        # Imported before the standard library was patched, perhaps.
        waiting.DefaultSelector = selectors.DefaultSelector  # type: ignore[attr-defined]
        waiting.wait = getattr(waiting, chosen)  # type: ignore[attr-defined]
