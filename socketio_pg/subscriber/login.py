"""The token of a Subscriber: brought with each connection, and renewed before its end."""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from socketio_pg.core.backoff import Backoff

logger = logging.getLogger("socketio_pg.subscriber")

#: The server warns 30 s before a token's end, which many tokens may share: seconds over which renewals are spread.
_RENEWAL_SPREAD = 10.0


class Login:
    """The application's token: the one that was brought to the server, and when a new one is to be."""

    def __init__(self, source: str | Callable[[], str | None], delays: tuple[float, float]) -> None:
        self._source = source
        self._first_delay = delays[0]
        self._backoff = Backoff(*delays)
        self.may_change = callable(source)
        #: The last that the server got.
        self.brought: str | None = None
        #: When a new one is to be brought (time.monotonic()).
        self.due = math.inf

    def fetch(self) -> str | None:
        """May take long, and raise whatever the application raises."""
        return self._source() if callable(self._source) else self._source

    def bring(self) -> dict[str, str]:
        """Socket.IO's ``auth`` for a new connection."""
        self.brought = self.fetch()
        return {} if self.brought is None else {"token": self.brought}

    def expires(self, body: Any) -> float:
        """The server has said so; returns :attr:`due`."""
        if not self.may_change:
            logger.warning("the token ends, and is no function that could return another one")
            return self.due
        left = 0.0
        with contextlib.suppress(TypeError, KeyError, ValueError):
            left = datetime.fromisoformat(body["expires_at"]).timestamp() - time.time()
        # A token that lives shorter than the server warns is not renewed all the time, either.
        delay = min(_RENEWAL_SPREAD, max(self._first_delay, left / 3))
        self.due = time.monotonic() + Backoff(delay, delay).next()
        return self.due

    def failed(self) -> float:
        """Returns :attr:`due`."""
        self.due = time.monotonic() + self._backoff.next()
        return self.due

    def renewed(self, token: str | None) -> None:
        self.brought = token
        self.rest()

    def rest(self) -> None:
        """Nothing is to be done."""
        self.due = math.inf
        self._backoff.reset()
