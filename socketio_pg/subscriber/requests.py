"""Sends the requests of channels: those that are made together share a request to the server.

After a reconnect, one request for each channel would exceed the server's limit of events.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

#: Limits of one request for many channels: the server allows 500, and limits the bytes.
MAX_TOGETHER, MAX_CHARACTERS = 250, 100_000

#: The events that one request can have for many channels.
_TOGETHER = ("subscribe", "unsubscribe")


@dataclass(frozen=True, slots=True)
class _Request:
    event: str
    body: Mapping[str, Any]
    answered: Callable[[Any], None]
    is_awaited: Callable[[], bool]


class Sender(Protocol):
    """The part of a connection that requests use."""

    def emit(self, event: str, body: Mapping[str, Any], answered: Callable[[Any], None], /) -> bool:
        """Send an event; return False when the connection is lost. ``answered`` is called with the server's answer."""


class Requests:
    """The requests on one connection. Call all methods with the subscriber's lock held, or in its event loop.

    ``answered`` is called with the answer, as if the request had been sent alone; not after the connection is lost.
    A request that has to wait for others is not sent if ``is_awaited()`` is false by then, after a timeout.
    """

    def __init__(self, connection: Sender) -> None:
        self._connection = connection
        #: Requests to be sent together, inside :meth:`together`.
        self._collected: list[_Request] | None = None
        #: The server takes one channel at a time: it has an older version.
        self._alone = False

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Send the requests that are made in the ``with`` block together."""
        if self._collected is not None:
            yield
            return
        collected = self._collected = []
        try:
            yield
        finally:
            self._collected = None
            for event in _TOGETHER:
                self._send_parts(_parts([request for request in collected if request.event == event]))

    def send(
        self, event: str, body: Mapping[str, Any], answered: Callable[[Any], None], is_awaited: Callable[[], bool]
    ) -> bool:
        """Send a request for one channel. Return False when the connection is lost."""
        if self._collected is None or event not in _TOGETHER:
            return self._connection.emit(event, body, answered)
        self._collected.append(_Request(event, body, answered, is_awaited))
        return True

    def _send_parts(self, parts: list[list[_Request]]) -> None:
        """Send the first part, and each other one when the one before it is answered."""
        while parts:
            part, *parts = parts
            part = [request for request in part if request.is_awaited()]
            if len(part) > 1 and not self._alone:
                self._send_together(part, parts)
                return
            for request in part:
                self._connection.emit(request.event, request.body, request.answered)

    def _send_together(self, part: list[_Request], later: list[list[_Request]]) -> None:
        event = part[0].event
        channels = [
            request.body["channel"] if event == "unsubscribe" and "channel" in request.body else dict(request.body)
            for request in part
        ]

        def answered(answer: Any) -> None:
            results = answer.get("channels") if isinstance(answer, dict) else None
            if isinstance(results, list) and len(results) == len(part):
                with self.together():  # what the channels request next
                    for request, result in zip(part, results, strict=True):
                        request.answered(result)
            elif _is_unknown(answer):
                self._alone = True
                self._send_parts([part])
            else:
                with self.together():
                    for request in part:
                        request.answered(answer)
            self._send_parts(later)

        self._connection.emit(event, {"channels": channels}, answered)


def _is_unknown(answer: Any) -> bool:
    """Return whether a server has refused a request for many channels as a whole, as one of an older version does."""
    error = answer.get("error") if isinstance(answer, dict) else None
    return isinstance(error, dict) and str(error.get("code")).startswith("invalid_")


def _parts(requests: list[_Request]) -> list[list[_Request]]:
    """Divide requests into parts that are small enough for one request."""
    parts: list[list[_Request]] = []
    characters = 0
    for request in requests:
        size = len(json.dumps(request.body))
        characters += size
        if not parts or len(parts[-1]) == MAX_TOGETHER or characters > MAX_CHARACTERS:
            parts.append([])
            characters = size
        parts[-1].append(request)
    return parts
