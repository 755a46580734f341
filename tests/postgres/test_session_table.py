"""recovery/session_table: the sessions of clients in the database."""

import json

from socketio_pg.postgres.database import Database
from socketio_pg.recovery.session_table import SessionTable
from tests.support.log_database import LogDatabase
from tests.support.patience import PATIENCE


def test_a_session_that_is_being_stored_is_not_lost_to_its_process(shared_log: LogDatabase, channel: str) -> None:
    """Neither the table nor the changes that wait have it then, and the process gave it up."""
    changes: list[bool] = []
    table = SessionTable(Database(shared_log.url), 120.0, lambda: None)

    def subscriptions() -> str:
        changes.append(table.has_changes(channel))
        return json.dumps({})

    try:
        assert not table.has_changes(channel)
        table.put(channel, subscriptions)
        table.wait_written(PATIENCE)
        assert changes == [True]
        assert not table.has_changes(channel)
        owner = table.find(channel)
        assert owner is not None
        assert owner.id == table.owner
    finally:
        table.stop()
