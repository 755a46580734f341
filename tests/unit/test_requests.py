"""Requests of many channels of a Subscriber, sent together."""

from functools import partial
from typing import Any, cast

from socketio_pg.subscriber.requests import MAX_TOGETHER, Requests


class _Connection:
    def __init__(self) -> None:
        self.sent: list[tuple[str, Any, Any]] = []

    def emit(self, event: str, body: Any, answered: Any) -> bool:
        self.sent.append((event, body, answered))
        return True


def test_a_request_that_waits_for_others_is_not_sent_after_its_timeout() -> None:
    """It would subscribe again after the application has unsubscribed."""
    connection = _Connection()
    requests = Requests(cast(Any, connection))
    awaited = {str(number) for number in range(MAX_TOGETHER + 3)}
    with requests.together():
        for name in sorted(awaited, key=int):
            requests.send("subscribe", {"channel": name}, lambda answer: None, partial(awaited.__contains__, name))
    late = str(MAX_TOGETHER)
    awaited.remove(late)
    requests.send("unsubscribe", {"channel": late}, lambda answer: None, lambda: True)
    [(_, body, answered), (event, _, _)] = connection.sent
    assert (len(body["channels"]), event) == (MAX_TOGETHER, "unsubscribe")
    answered({"ok": True, "channels": [{"ok": True}] * MAX_TOGETHER})
    left = [{"channel": str(MAX_TOGETHER + 1)}, {"channel": str(MAX_TOGETHER + 2)}]
    assert connection.sent[2][:2] == ("subscribe", {"channels": left})
