"""sql/3_control.sql: who may disconnect users and send to them, and what the functions refuse."""

import contextlib

import psycopg2
import pytest

from tests.support.cli import Base, run

CALLS = (
    ("SELECT socketio_pg.disconnect_user('ann')", {"action": "disconnect_user", "sub": "ann"}),
    ("SELECT socketio_pg.disconnect_connection('sid')", {"action": "disconnect_connection", "sid": "sid"}),
    (
        "SELECT socketio_pg.unsubscribe_user('ann', 'a:*')",
        {"action": "unsubscribe_user", "sub": "ann", "channel": "a:*"},
    ),
    (
        "SELECT socketio_pg.send_to_user('ann', '{\"n\": 1.10}')",
        {"action": "send_to_user", "sub": "ann", "payload": '{"n": 1.10}'},
    ),
)


def test_only_roles_that_were_granted_it_reach_users(base: Base, poor: str) -> None:
    """Not those that may publish, and nobody with an action of its own."""
    assert run("init", "--publisher-role", "cli_poor", url=base.url).returncode == 0
    with contextlib.closing(psycopg2.connect(poor)) as connection, connection.cursor() as cursor:
        for call, _ in CALLS:
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute(call)
            connection.rollback()
        assert run("disconnect", "ann", url=poor).returncode != 0
        assert run("init", "--admin-role", "cli_poor", url=base.url).returncode == 0
        for call, _ in CALLS:
            cursor.execute(call)
        connection.commit()
        for refused in ('SELECT socketio_pg.control(\'{"sub": "ann"}\')', "SELECT count(*) FROM socketio_pg.outbox"):
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute(refused)
            connection.rollback()
    base.sql("DROP OWNED BY cli_poor")
    found = base.sql("SELECT channel, payload, size FROM socketio_pg.outbox ORDER BY id")
    assert [(channel, payload) for channel, payload, _ in found] == [("socketio_pg_control", body) for _, body in CALLS]
    assert all(size > 0 for *_, size in found)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("disconnect_user('')", "SG011"),
        ("disconnect_user(NULL)", "SG011"),
        ("disconnect_user(repeat('x', 1001))", "SG011"),
        ("disconnect_connection(NULL)", "SG011"),
        ("unsubscribe_user('ann', '')", "SG001"),
        ("unsubscribe_user('ann', NULL)", "SG001"),
        ("unsubscribe_user('ann', 'socketio_pg*')", "SG001"),
        ("send_to_user(NULL, '1')", "SG011"),
        ("send_to_user('ann', to_jsonb(repeat('x', 1000000)))", "SG002"),
    ],
)
def test_what_the_functions_refuse(logged: Base, call: str, code: str) -> None:
    with pytest.raises(psycopg2.Error) as raised:
        logged.sql(f"SELECT socketio_pg.{call}")
    assert raised.value.pgcode == code
