"""Sessions before they connect to a namespace: which of them expire, and which make room."""

from socketio_pg.engine.pending import MAX_SHARE, Pending


class Session:
    """A session, of which only the identity and the address count."""

    def __init__(self, address: str = "") -> None:
        self.address = address


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


def test_addresses_with_many_sessions_make_room_first() -> None:
    pending = Pending()
    real = Session("real")
    pending.add(real, 0.0, silent=True)
    crowds = {name: [Session(name) for _ in range(MAX_SHARE + 3)] for name in ("a", "b")}
    for crowd in crowds.values():
        for session in crowd:
            pending.add(session, 1.0, silent=True)
    made_room = []
    for _ in range(6):
        oldest = pending.oldest_silent()
        assert oldest is not None
        pending.remove(oldest)
        made_room.append(oldest)
    assert made_room == [crowds[name][index] for index in range(3) for name in ("a", "b")], "in turn"
    assert pending.oldest_silent() is real, "nobody has too many any more"

    # Also without the silent ones, and without those for which the server works.
    more = [Session("a") for _ in range(2)]
    for session in more:
        pending.add(session, 2.0, silent=False)
    assert pending.oldest() is crowds["a"][3]
    pending.begin(more[0])
    pending.begin(more[1])
    assert pending.oldest() is pending.oldest_silent() is real
    pending.end(more[0])
    assert pending.oldest() is crowds["a"][3]
    for session in (real, *more, *crowds["a"], *crowds["b"]):
        pending.remove(session)
    assert pending.oldest() is pending.oldest_silent() is None
