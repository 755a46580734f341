"""The token of a Subscriber: sent with each connection, and renewed before it expires."""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from socketio_pg.core.backoff import Backoff

logger = logging.getLogger("socketio_pg.subscriber")

#: Seconds over which renewals are spread: the server warns 30 s before a token expires, and many may expire together.
_RENEWAL_SPREAD = 10.0


class Login:
    """The application's token: the last one that was sent, and when to renew it."""

    def __init__(self, source: str | Callable[[], Any], delays: tuple[float, float]) -> None:
        self._source = source
        self._first_delay = delays[0]
        self._backoff = Backoff(*delays)
        self.may_change = callable(source)
        #: The last token that was sent to the server.
        self.sent: str | None = None
        #: When to renew the token (time.monotonic()).
        self.due = math.inf

    def fetch(self) -> Any:
        """Return the application's current token, or what it must be awaited from.

        May take long, and raises what the application's function raises.
        """
        return self._source() if callable(self._source) else self._source

    def auth(self, token: str | None) -> dict[str, str]:
        """Return Socket.IO's ``auth`` for a new connection with ``token``."""
        self.sent = token
        return {} if self.sent is None else {"token": self.sent}

    def expires(self, body: Any) -> float:
        """Handle the server's ``token_expiring``: schedule the renewal and return :attr:`due`."""
        if not self.may_change:
            logger.warning("the token is about to expire and cannot be renewed: pass a function as token=")
            return self.due
        left = 0.0
        with contextlib.suppress(TypeError, KeyError, ValueError):
            left = datetime.fromisoformat(body["expires_at"]).timestamp() - time.time()
        # Waits at least the retry delay: a token that lives shorter than the warning time would be renewed in a loop.
        delay = min(_RENEWAL_SPREAD, max(self._first_delay, left / 3))
        self.due = time.monotonic() + Backoff(delay, delay).next()
        return self.due

    def failed(self) -> float:
        """Schedule the next attempt and return :attr:`due`."""
        self.due = time.monotonic() + self._backoff.next()
        return self.due

    def renewed(self, token: str | None) -> None:
        self.sent = token
        self.cancel()

    def cancel(self) -> None:
        """Cancel the scheduled renewal."""
        self.due = math.inf
        self._backoff.reset()
