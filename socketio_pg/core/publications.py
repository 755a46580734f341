"""What somebody asks to publish, over a socket or HTTP: one message, or several in one transaction. Pure."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from socketio_pg.core.channels import validate_channel
from socketio_pg.core.errors import InvalidRequestError, SocketIOPGError

#: Messages that are published together at most.
MOST_TOGETHER = 1000


@dataclass(frozen=True, slots=True)
class Publication:
    """``payload`` is any JSON value. ``durable``: through the log, not through it, or (None) as the settings say."""

    channel: str
    payload: Any
    durable: bool | None = None


def requested_publication(request: Mapping[str, Any]) -> Publication:
    """What ``request``, ``{channel, payload, durable?}``, asks for.

    Raises :class:`InvalidRequestError` or :class:`InvalidChannelError`.
    """
    channel = validate_channel(request.get("channel"))
    if "payload" not in request:
        raise InvalidRequestError("payload is missing", channel=channel)
    durable = request.get("durable")
    if durable is not None and not isinstance(durable, bool):
        raise InvalidRequestError("durable must be true or false", channel=channel)
    return Publication(channel, request["payload"], durable)


def requested_publications(messages: object) -> Sequence[Publication]:
    """The same of each of ``messages``, a list of 1 to :data:`MOST_TOGETHER` such objects; an error says of which."""
    if not isinstance(messages, list) or not 1 <= len(messages) <= MOST_TOGETHER:
        raise InvalidRequestError(f"messages must be a list of 1 to {MOST_TOGETHER} objects")
    found = []
    for index, message in enumerate(messages):
        with error_of(index):
            if not isinstance(message, dict):
                raise InvalidRequestError("this is no object")
            found.append(requested_publication(message))
    return found


@contextlib.contextmanager
def error_of(index: int) -> Iterator[None]:
    """What the body raises is about ``messages[index]``, and says so."""
    try:
        yield
    except SocketIOPGError as error:
        # A copy: others may be waiting for the same answer, and get the same error.
        told = copy.copy(error)
        told.message = f"messages[{index}]: {error.message}"
        raise told from error
