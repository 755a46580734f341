"""Green threads that wait for channels to be listened to."""

from socketio_pg.core import green
from socketio_pg.core.errors import DatabaseUnavailableError, InvalidRequestError


class ListenCancelledError(InvalidRequestError):
    """The channel was released while somebody waited for its LISTEN."""


class Waiters:
    """Who waits for which channel."""

    def __init__(self) -> None:
        self._events: dict[str, list[green.Event]] = {}

    def wait(self, channel: str, seconds: float) -> None:
        """Return after :meth:`done`. Raises what that says, :class:`DatabaseUnavailableError` after ``seconds``."""
        event = green.Event()
        waiters = self._events.setdefault(channel, [])
        waiters.append(event)
        try:
            error = event.wait(seconds)
        except green.TimedOut:
            raise DatabaseUnavailableError(
                "the database cannot be listened to at the moment", channel=channel
            ) from None
        finally:
            waiters.remove(event)
            if not waiters and self._events.get(channel) is waiters:
                del self._events[channel]
        if error is not None:
            raise error

    def done(self, channel: str, error: Exception | None = None) -> None:
        """Let those go who wait for ``channel``."""
        for event in self._events.get(channel, ()):
            event.send(error)

    def cancel(self, channel: str) -> None:
        """Let them go because nobody wants the channel any more."""
        self.done(channel, ListenCancelledError("unsubscribed before the subscription was complete", channel=channel))
