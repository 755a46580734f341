"""Sessions of clients that can recover them: what is stored, and when."""

import time
from dataclasses import replace
from typing import Any

import pytest

from socketio_pg.core.seal import Key
from socketio_pg.gateway.restoring import _Attempt
from socketio_pg.postgres.database import Database
from socketio_pg.protocol.offsets import Cursor
from socketio_pg.recovery.session import Entry, NotRecoveredError, Session, Ticket
from socketio_pg.recovery.session_table import Owner, SessionTable
from socketio_pg.websocket import SocketServer


class FakeLog:
    epoch: str | None = "0b5c9a0e-3c1c-4a73-9a4e-52b0f3c3a7d1"
    delivered = 0


def new_session() -> Session:
    return Session(Ticket("sid", "", FakeLog.epoch or "", 0, 0.0), "pid", Cursor(FakeLog()), None)


def test_subscriptions_are_stored_as_they_are() -> None:
    session = new_session()
    session.entries = {
        "a": Entry(1, 5, {"x": 1}, True, "snapshot"),
        "b": Entry(2, 2**62),
        "c": Entry(3, 0, replaying=True),
    }
    session.notified = {"a"}
    found = new_session()
    found.load(session.to_text({"b", "another"}))
    assert found.entries == session.entries
    assert found.notified == {"a", "b"}
    assert found.numbers == 3
    assert found.cursor.numbers == {"a": 1, "b": 2, "c": 3}


def test_many_changes_of_a_moment_cost_one_text() -> None:
    """Otherwise a client with many subscriptions would make the text of all of them for each one."""
    made: list[str] = []

    def subscriptions() -> str:
        made.append("text")
        return "{}"

    table = SessionTable(Database("postgresql://nobody@127.0.0.1:1/none"), 120.0, lambda: None)
    try:
        for _ in range(1000):
            table.put("sid", subscriptions)
        assert not made
    finally:
        table.stop()


def test_a_session_that_was_not_restored_is_not_given_back(socket_server: SocketServer) -> None:
    """With its pid the stock client would believe that it has its subscriptions, and has missed nothing."""
    socket_server.sealing.use("1/1", [Key.from_bytes(bytes(32))])
    restoring: Any = socket_server.socketio.server.lifecycle
    restoring = restoring._restoring
    former = new_session()
    attempt = restoring._attempts["eio"] = _Attempt(returning=True, possible=True, session=former)
    try:
        assert restoring.answer("another sid", "eio", "/")["pid"] not in (None, former.pid)
        assert attempt.to_wire() == {"recovered": False, "reason": "failed"}
    finally:
        socket_server.keeping.stop()


def test_a_session_that_is_forgotten_while_its_owner_is_looked_up_is_unknown(
    socket_server: SocketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping = socket_server.keeping
    session = new_session()
    session.ticket = replace(session.ticket, began=time.time() - keeping.young - 1)
    keeping._sessions["sid"] = session

    def find(sid: str) -> Owner | None:
        if not keeping._sessions.pop(sid, None):
            return None
        return Owner("another process", True)

    monkeypatch.setattr(keeping._table, "find", find)
    try:
        with pytest.raises(NotRecoveredError) as raised:
            keeping.take(session.ticket, session.pid, "eio")
        assert raised.value.reason == "unknown_session"
    finally:
        keeping.stop()
