"""The presence of a channel, for programs with threads."""

import time
from collections.abc import Callable
from typing import Any

from socketio_pg.core.errors import SocketIOPGError
from socketio_pg.subscriber.link import Link
from socketio_pg.subscriber.presence_requests import Call, Joined, Watcher
from socketio_pg.subscriber.presence_state import PresenceMember


class Presence(Watcher):
    """The people who are present on a channel, as returned by :meth:`Subscriber.presence`. All methods are thread-safe.

    After a reconnect the client joins again, with the same state. All objects of one channel share its members, and
    whether this client has joined.
    """

    def __init__(
        self,
        channel: str,
        link: Link,
        on_join: Callable[[PresenceMember], object] | None,
        on_update: Callable[[PresenceMember, PresenceMember], object] | None,
        on_leave: Callable[[PresenceMember], object] | None,
        on_sync: Callable[[dict[str, PresenceMember]], object] | None,
        on_error: Callable[[SocketIOPGError], object] | None,
    ) -> None:
        super().__init__(on_join, on_update, on_leave, on_sync, on_error)
        self.channel = channel
        self._link = link
        self._shared = link.channel(channel)

    @property
    def members(self) -> dict[str, PresenceMember]:
        """A copy of the members by key. After a lost connection these are the last known ones."""
        with self._link.lock:
            return self._shared.presence.state.members.copy()

    @property
    def count(self) -> int:
        """The number of members."""
        return self._shared.presence.state.count

    @property
    def complete(self) -> bool:
        """False when there are too many members: then only :attr:`count` is known."""
        return self._shared.presence.state.complete

    @property
    def key(self) -> str | None:
        """The key of this client's own member; None if it has not joined."""
        return self._shared.presence.key

    def join(self, state: Any = None, *, key: str | None = None) -> None:
        """Join, also after each reconnect, until :meth:`leave` or :meth:`close`; return once the server has confirmed.

        If the client has joined already, the state changes. ``state`` is any JSON value of up to 1 KB. ``key`` is for
        anonymous clients, to be one member with several connections.

        Raises :class:`ForbiddenError`, :class:`PayloadTooLargeError` and others when the server refuses;
        :class:`TimeoutError` without an answer, and then the client still joins when it can; what has ended this
        object.
        """
        joined: Joined = {"state": state} if key is None else {"state": state, "key": key}
        self._wait(lambda: self._shared.presence.join(self, joined))

    def update(self, state: Any) -> None:
        """Change the state. Raises :class:`InvalidRequestError` before :meth:`join`, and as :meth:`join`."""
        self._wait(lambda: self._shared.presence.update(self, state))

    def leave(self) -> None:
        """Leave, and go on to watch. Raises as :meth:`join`."""
        self._wait(lambda: self._shared.presence.join(self, None))

    def close(self) -> None:
        """Leave, if this object has joined, and end the calls of its handlers. Idempotent."""
        with self._link.lock:
            self._shared.presence.remove(self)
            self._shared.settle()

    def open(self) -> None:
        """Begin to watch; used by :meth:`Subscriber.presence`."""
        link = self._link
        with link.lock:
            link.check()
            self._shared.presence.add(self)
            self._shared.settle()
            link.changed.wait_for(lambda: self.confirmed or self.ended or link.closed, link.timeout)
            if self.confirmed and not self.ended:
                return
            error = self.error
            if error is None and link.connection is None:
                error = ConnectionError(f"no connection to {link.url}")
            self.close()
            raise error or TimeoutError("the server did not answer")

    def _wait(self, begin: Callable[[], Call]) -> None:
        link = self._link
        deadline = time.monotonic() + link.timeout
        with link.lock:
            link.check()
            call = begin()
            self._shared.settle()
            link.changed.wait_for(lambda: call.done or link.closed, deadline - time.monotonic())
            if call.error is not None:
                raise call.error
            if not call.done:
                link.check()
                raise TimeoutError("the server did not answer")
