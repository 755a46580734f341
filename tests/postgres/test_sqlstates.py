"""Errors of PostgreSQL: the wire code of each SQLSTATE, as docs/protocol.md has it."""

import re
from pathlib import Path
from typing import Any

import psycopg2.errorcodes
import pytest

from socketio_pg.core.errors import SocketIOPGError
from socketio_pg.postgres.database import Database, session, translated_errors
from tests.support.postgres import Cluster, in_thread

#: All SQLSTATEs that the driver knows. PostgreSQL raises none of the first two classes as an error.
SQLSTATES = sorted(
    value
    for name, value in vars(psycopg2.errorcodes).items()
    if name.isupper() and isinstance(value, str) and len(value) == 5 and value[:2] not in ("00", "01")
)


@pytest.fixture
def documented() -> dict[str, str]:
    """Return the code of each class and SQLSTATE, from the table in docs/protocol.md."""
    text = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text("utf-8")
    found: dict[str, str] = {}
    for states, code in re.findall(r"^\| (`[0-9A-Z]{2,5}`[^|]*) \| [^|]* \| `(\w+)`", text, re.MULTILINE):
        if " when " not in states:
            for state in re.findall(r"`(\w+)`", states):
                found.setdefault(state, code)
    return found


def test_each_sqlstate_has_its_documented_code(newest_pg: Cluster, documented: dict[str, str]) -> None:
    def raised(connection: Any, state: str) -> str:
        with pytest.raises(SocketIOPGError) as caught, translated_errors(10), connection.cursor() as cursor:
            cursor.execute(f"DO $$ BEGIN RAISE EXCEPTION 'a test' USING ERRCODE = '{state}'; END $$")
        assert "a test" not in caught.value.message
        return caught.value.code

    def raise_all() -> dict[str, str]:
        with session(Database(newest_pg.url()), "test") as connection:
            return {state: raised(connection, state) for state in [*SQLSTATES, "CX001"]}

    codes = in_thread(raise_all)
    assert {state[:2] for state in SQLSTATES} <= {state[:2] for state in documented}
    wrong = {
        state: code for state, code in codes.items()
        if code != documented.get(state, documented.get(state[:2], "database_unavailable"))
    }  # fmt: skip
    assert wrong == {}


def test_internal_is_for_bugs(documented: dict[str, str]) -> None:
    assert documented["25006"] == documented["42501"] == "database_unavailable"
    assert documented["42"] == "internal"
