"""How long the same message has been the oldest in the outbox."""

from socketio_pg.log.backlog import Waiting


def waited(*looks: tuple[int | None, float]) -> float:
    waiting = Waiting()
    for id, now in looks:
        waiting.seen(id, now)
    return waiting.seconds


def test_same_message_waits() -> None:
    assert waited((7, 10), (7, 12), (7, 16)) == 6


def test_one_look_shows_nothing() -> None:
    """A transaction that commits long after it has published has an old row, which is visible for a moment."""
    assert waited((7, 10)) == 0


def test_messages_that_move_do_not_wait() -> None:
    assert waited((7, 10), (9, 12), (12, 16)) == 0
    assert waited((7, 10), (None, 12), (7, 14)) == 0


def test_waiting_ends_with_the_message() -> None:
    assert waited((7, 10), (7, 20), (None, 21)) == 0
    assert waited((7, 10), (7, 20), (8, 21), (8, 23)) == 2
