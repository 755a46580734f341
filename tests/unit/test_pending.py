"""Sessions before they connect to a namespace: which of them expire, and which make room."""

from socketio_pg.engine.pending import Pending


class Session:
    """A session, of which only the identity counts."""


def test_oldest_session_makes_room_unless_the_server_handles_its_message() -> None:
    pending = Pending()
    assert pending.oldest() is pending.oldest_silent() is None
    polling, websocket, late = Session(), Session(), Session()
    pending.add(websocket, 1.0, silent=False)
    pending.add(polling, 2.0, silent=True)
    pending.add(late, 3.0, silent=True)
    assert (len(pending), pending.silent) == (3, 2)
    assert pending.oldest() is websocket
    assert pending.oldest_silent() is polling
    pending.begin(websocket)
    assert pending.oldest() is polling
    assert pending.answer(polling)
    assert not pending.answer(polling)
    assert pending.oldest_silent() is late
    pending.begin(polling)
    pending.remove(late)
    assert pending.oldest() is None, "both wait for the server"
    pending.end(websocket)
    assert pending.oldest() is websocket
    for session in (websocket, polling):
        pending.remove(session)
    assert len(pending) == 0


def test_silent_sessions_expire_first() -> None:
    pending = Pending()
    silent, idle, busy, late = (Session() for _ in range(4))
    pending.add(silent, 0.0, silent=True)
    for session in (idle, busy):
        pending.add(session, 0.0, silent=False)
    pending.add(late, 2.0, silent=True)
    pending.begin(busy)
    assert list(pending.expired(4.9, 10.0)) == []
    assert list(pending.expired(5.0, 10.0)) == [silent]
    pending.remove(silent)
    pending.answer(late)
    assert list(pending.expired(9.9, 10.0)) == []
    assert list(pending.expired(10.0, 10.0)) == [idle, busy]
    assert set(pending.expired(3.0, 1.0)) == {idle, busy, late}


def test_session_that_leaves_its_namespace_has_its_time_again() -> None:
    pending = Pending()
    session = Session()
    pending.add(session, 0.0, silent=False)
    pending.begin(session)
    pending.remove(session)
    pending.end(session)
    assert len(pending) == 0, "it was admitted"
    pending.add(session, 20.0, silent=False)
    assert list(pending.expired(29.0, 10.0)) == []
    assert list(pending.expired(30.0, 10.0)) == [session]
