"""One call of publish() of a Python client, over as many connections as it takes. Pure, no I/O."""

import uuid
from collections.abc import Collection
from typing import Any

from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.core.messages import Position, encode_payload
from socketio_pg.core.publications import Published, validate_id
from socketio_pg.subscriber.answers import answer_error

#: The name of the feature in `server_hello`: the server publishes the same id once.
_FEATURE = "publish_id"
_UNKNOWN = "the message may have been sent or not"


class Publishing:
    """The requests of one call, and what their answers mean.

    A message gets an id of its own, with which it is sent again after a lost connection. Not with ``durable=False``:
    such messages may be lost anyway, and each id is a row in the database. Nor without the schema in the database.
    """

    def __init__(
        self,
        channel: str,
        payload: object,
        durable: bool | None,
        id: str | None,
        wait: bool,
        echo: bool = True,
        traceparent: str | None = None,
    ) -> None:
        """Raises :class:`InvalidRequestError` for a payload that is not JSON, and for an invalid id."""
        encode_payload(payload)  # raises a clearer error than the client library
        self._channel = channel
        self._body: dict[str, Any] = {"channel": channel, "payload": payload}
        if durable is not None:
            self._body["durable"] = durable
        if not wait:
            self._body["wait"] = False
        if not echo:
            self._body["echo"] = False
        if traceparent is not None:
            self._body["traceparent"] = traceparent
        self._wait = wait
        self._given = id is not None
        self._may_add_id = durable is not False
        if id is not None:
            self._body["id"] = validate_id(id)
        #: Whether a request was sent that has no answer.
        self.sent = False

    @property
    def repeatable(self) -> bool:
        """Whether the message is published once, however often it is sent."""
        return "id" in self._body

    def body(self, features: Collection[str], *, adds_id: bool = True) -> dict[str, Any]:
        """Return the request for a server with these features; ``adds_id``: the message may get an id of its own.

        Raises :class:`InvalidRequestError` when it does not know ids, and :class:`ConnectionError` when that leaves the
        outcome of an earlier request unknown.
        """
        known = _FEATURE in features
        if self.sent and not known:
            raise self.failure(lost=True)
        if self._given and not known:
            raise InvalidRequestError("the server is of an older version, which knows no ids", channel=self._channel)
        if known and adds_id and self._may_add_id and not self.repeatable:
            self._body["id"] = uuid.uuid4().hex
        return self._body

    def finish(self, answer: Any) -> Published | None:
        """Return the result; None if the message is to be sent once more, without an id.

        Raises the error that the server answers.
        """
        error = answer_error(answer, self._channel)
        if error is None:
            place = None
            if isinstance(answer.get("position"), int):
                place = Position(epoch=str(answer.get("epoch")), position=answer["position"])
            # A duplicate of an earlier request of this call is none.
            duplicate = answer.get("duplicate") is True and not self.sent
            durable = "position" in answer or self._body.get("durable") is True
            return Published(self._channel, durable, self._wait, place, duplicate)
        if error[0] == "log_not_installed" and self.repeatable and not self._given:
            self._may_add_id = False
            del self._body["id"]
            return None
        raise error[1]

    def failure(self, *, lost: bool) -> Exception:
        """Return the error of a request that has no answer: the connection is lost, or the time is over."""
        what = "the connection was lost" if lost else "the server did not answer"
        return (ConnectionError if lost else TimeoutError)(f"{what}: {_UNKNOWN}")
