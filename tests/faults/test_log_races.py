"""Provoked races within one node."""

from collections.abc import Callable, Sequence

from socketio_pg.core import green
from socketio_pg.core.channels import LOG_CHANNEL
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.core.seal import Key, Seal
from socketio_pg.core.sealing import Sealing
from socketio_pg.log.follower import Follower
from socketio_pg.log.history import History
from socketio_pg.log.positions import Head
from socketio_pg.log.recent import Recent
from socketio_pg.postgres.listeners import Listeners


class _Listener(Listeners):
    """Reports every channel as listened to immediately."""

    def __init__(self) -> None:
        return

    def acquire(self, channel: str) -> None:
        return

    def wait(self, channel: str, seconds: float) -> None:
        return


class _History(History):
    """Returns the head as it was before ``meanwhile`` ran, so that it is slightly outdated."""

    def __init__(self) -> None:
        self.position = 0
        self.meanwhile: Callable[[], object] = lambda: None

    def stop(self) -> None:
        return

    def head(self) -> Head:
        head = Head("epoch", self.position, 0)
        self.meanwhile()
        return head


def test_message_received_while_reading_the_head_causes_no_gap() -> None:
    delivered: list[int | None] = []
    gaps: list[str] = []

    def deliver(messages: Sequence[EncodedMessage]) -> None:
        delivered.extend(message.position for message in messages)

    seal = Seal()
    seal.use("1/1", [Key.from_bytes(bytes(32))])
    history = _History()
    follower = Follower(_Listener(), history, Recent(), deliver, gaps.append, Sealing(seal))
    try:
        history.position = 2
        follower.start()
        green.sleep()
        follower.wait_known(5)
        text = seal.seal(LOG_CHANNEL, 'epoch 3 3\nfoo\t2026-01-01T00:00:00.000000Z\t"three"')
        history.meanwhile = lambda: follower.hear([text])
        follower.look()
        for _ in range(10):
            green.sleep()
    finally:
        follower.stop()
    assert (follower.position, delivered, gaps) == (3, [3], [])
