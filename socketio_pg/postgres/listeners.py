"""Distributes channels over LISTEN connections, because LISTEN costs O(channels of its connection).

A channel stays on its connection from its LISTEN to its UNLISTEN, so its messages arrive in the order of the commits.
With more than :attr:`Listeners.max_channels` channels that is not so between channels of different connections.
"""

import logging
from collections.abc import Mapping
from datetime import datetime

from socketio_pg.core import green
from socketio_pg.core.channels import RESERVED_PREFIX
from socketio_pg.core.problems import Problem
from socketio_pg.core.sealing import Sealing
from socketio_pg.postgres.database import Database
from socketio_pg.postgres.listener import Listener, OnGap, OnNotifications

logger = logging.getLogger("socketio_pg.listener")


class Listeners:
    """A :class:`Listener` that opens further connections when it has many channels, and closes those without any.

    Reserved channels are on the first connection, and so are all others while there is room.
    """

    #: The maximum number of channels of one connection, without reserved ones: 0.24 s for the LISTEN to all of them.
    max_channels = 10_000

    @classmethod
    def connections_for(cls, channels: int) -> int:
        """Return the maximum number of connections for that many channels, and those in their grace time."""
        room = cls.max_channels - Listener.max_leaving - Listener.batch_size
        return max(1, -(-channels // room))

    def __init__(
        self, database: Database, on_notifications: OnNotifications, on_gap: OnGap, sealing: Sealing | None = None
    ) -> None:
        self._database = database
        self._sealing = sealing
        self._on_notifications = on_notifications
        self._on_gap = on_gap
        self._started = False
        #: The connection of each channel, until its UNLISTEN; and the number of channels of each connection.
        self._of: dict[str, Listener] = {}
        self._channels: dict[Listener, int] = {}
        #: The connection that is always open.
        self.first = self._create()

    @property
    def ready(self) -> bool:
        """Whether all connections are up, proven, and listen to all channels that were acquired when they came up."""
        return self.problem is None

    @property
    def problem(self) -> Problem | None:
        """The reason why it is not ready, for the operator; None when it is.

        A further connection that is being opened is no problem: only new channels wait for it.
        """
        problems = [listener.problem for listener in self._settled()]
        return next((problem for problem in problems if problem is not None), None)

    @property
    def heard(self) -> datetime:
        """The time up to which it has certainly missed nothing."""
        return min(listener.heard for listener in self._settled())

    @property
    def channels(self) -> int:
        """The number of channels that it listens to, including those in their grace time."""
        return len(self._of)

    @property
    def connections(self) -> int:
        """The number of connections, including those that are being opened."""
        return len(self._channels)

    @property
    def backends(self) -> Mapping[int, int]:
        """PostgreSQL's process id of each connection that is up → the number of channels that it listens to."""
        return {one.backend: one.listening for one in self._channels if one.backend is not None}

    def start(self) -> None:
        """Start the green threads. Call it after any fork, in the process that listens."""
        self._started = True
        for listener in self._channels:
            listener.start()

    def stop(self) -> None:
        """Stop the green threads and close the connections."""
        self._started = False
        for listener in list(self._channels):
            listener.stop()

    def acquire(self, channel: str) -> None:
        """Listen to ``channel``; :meth:`wait` returns once it does."""
        listener = self._of.get(channel)
        if listener is None:
            listener = self._of[channel] = self._choose(channel)
            self._channels[listener] += 1
        listener.acquire(channel)

    def release(self, channel: str) -> None:
        """Stop listening to ``channel``; the UNLISTEN follows after a grace time."""
        listener = self._of.get(channel)
        if listener is not None:
            listener.release(channel)

    def wait(self, channel: str, seconds: float) -> None:
        """Return once the LISTEN for ``channel`` has committed. Raises as :meth:`Listener.wait`."""
        self._of.get(channel, self.first).wait(channel, seconds)

    def _settled(self) -> list[Listener]:
        return [listener for listener in self._channels if listener is self.first or not listener.opening]

    def _choose(self, channel: str) -> Listener:
        if channel.startswith(RESERVED_PREFIX):
            return self.first
        for listener, channels in self._channels.items():
            if channels < self.max_channels:
                return listener
        logger.info("opening LISTEN connection %d for %d channels", len(self._channels) + 1, len(self._of) + 1)
        listener = self._create()
        if self._started:
            listener.start()
        return listener

    def _create(self) -> Listener:
        listener = Listener(self._database, self._on_notifications, self._on_gap, self._on_left, self._sealing)
        self._channels[listener] = 0
        return listener

    def _on_left(self, channel: str) -> None:
        """Forget a channel that its connection does not listen to any more."""
        listener = self._of.pop(channel, None)
        if listener is None:
            return
        self._channels[listener] -= 1
        if not self._channels[listener] and listener is not self.first:
            del self._channels[listener]
            green.run_soon(listener.stop)  # the listener's green thread calls this
