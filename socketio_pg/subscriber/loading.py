"""Reads the rows that a subscription's messages change, again whenever messages are missing."""

import logging
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

from socketio_pg.core.backoff import Backoff
from socketio_pg.core.cursors import SNAPSHOT_PREFIX
from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.subscriber.channel import Channel
from socketio_pg.subscriber.deliveries import Delivery
from socketio_pg.subscriber.link import Link
from socketio_pg.subscriber.subscription import Member

logger = logging.getLogger("socketio_pg.subscriber")

#: Returns rows and the token of their snapshot, or the token alone.
Load: TypeAlias = Callable[[], tuple[Any, str] | str]


class Loader:
    """Calls ``load`` for one subscription, and ``on_rows`` in the handlers' thread before the messages that follow."""

    def __init__(self, load: Load, on_rows: Callable[[Any], object] | None, link: Link) -> None:
        self._load = load
        self._on_rows = on_rows
        self._link = link

    def load(self) -> tuple[Any, str]:
        """Return rows and token. Raises what ``load`` raises, and :class:`InvalidRequestError` without a token."""
        loaded = self._load()
        rows, token = (None, loaded) if isinstance(loaded, str) else loaded
        if not isinstance(token, str) or not token.startswith(SNAPSHOT_PREFIX):
            raise InvalidRequestError("load must return (rows, token), or the token of socketio_pg.snapshot()")
        return rows, token

    def deliver(self, member: Member, rows: object) -> None:
        """Queue the call of ``on_rows``. Holds the link's lock."""
        if self._on_rows is not None:
            self._link.deliver(Delivery(member, self._on_rows, rows))

    def reload(self, channel: Channel, member: Member) -> None:
        """Load again, in a thread, until it succeeds. The messages wait meanwhile. Holds the link's lock."""
        threading.Thread(target=self._run, args=(channel, member), name="socketio_pg-load", daemon=True).start()

    def _run(self, channel: Channel, member: Member) -> None:
        link = self._link
        # Also before the first attempt: many clients may have missed messages at the same time.
        backoff = Backoff(*link.retry_delays)
        while True:
            with link.lock:
                if link.changed.wait_for(lambda: link.closed or member.ended, backoff.next()):
                    return
            try:
                rows, token = self.load()
            except Exception:  # the application's own, or its database's
                logger.exception("loading the rows of %r failed; retrying", channel.name)
                continue
            with link.lock:
                if not member.ended:
                    self.deliver(member, rows)
                    channel.reloaded(member, token)
            return
