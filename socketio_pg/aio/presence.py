"""The presence of a channel, for programs on asyncio."""

from collections.abc import Callable
from typing import Any

from socketio_pg.aio.link import Link
from socketio_pg.core.errors import SocketIOPGError
from socketio_pg.subscriber.presence_requests import Call, Joined, Watcher
from socketio_pg.subscriber.presence_state import PresenceMember


class AsyncPresence(Watcher):
    """The people who are present on a channel, as returned by :meth:`AsyncSubscriber.presence`.

    After a reconnect the client joins again, with the same state. All objects of one channel share its members, and
    whether this client has joined. Handlers are called in the event loop: they must not block. Arguments and errors are
    those of :class:`socketio_pg.subscriber.Presence`.
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

    async def join(self, state: Any = None, *, key: str | None = None) -> None:
        """Join, also after each reconnect, until :meth:`leave` or :meth:`close`; return once the server has confirmed.

        If the client has joined already, the state changes. A cancelled call still joins when it can.
        """
        joined: Joined = {"state": state} if key is None else {"state": state, "key": key}
        await self._wait(self._shared.presence.join, joined)

    async def update(self, state: Any) -> None:
        """Change the state. Raises :class:`InvalidRequestError` before :meth:`join`."""
        await self._wait(self._shared.presence.update, state)

    async def leave(self) -> None:
        """Leave, and go on to watch."""
        await self._wait(self._shared.presence.join, None)

    def close(self) -> None:
        """Leave, if this object has joined, and end the calls of its handlers. Idempotent."""
        self._shared.presence.remove(self)
        self._shared.settle()

    async def open(self) -> None:
        """Begin to watch; used by :meth:`AsyncSubscriber.presence`."""
        link = self._link
        link.check()
        self._shared.presence.add(self)
        try:
            self._shared.settle()
            await link.changed.wait_for(lambda: self.confirmed or self.ended or link.closed, link.timeout)
            if not self.confirmed or self.ended:
                error = self.error
                if error is None and link.connection is None:
                    error = ConnectionError(f"no connection to {link.url}")
                raise error or TimeoutError("the server did not answer")
        except BaseException:
            self.close()
            raise

    async def _wait(self, begin: Callable[["AsyncPresence", Any], Call], argument: Any) -> None:
        link = self._link
        link.check()
        call = begin(self, argument)
        self._shared.settle()
        await link.changed.wait_for(lambda: call.done or link.closed, link.timeout)
        if call.error is not None:
            raise call.error
        if not call.done:
            link.check()
            raise TimeoutError("the server did not answer")
