"""Sends the replays of each client in turn: one page at a time, over all of its channels, as its send buffer drains."""

import logging
import time
from collections.abc import Callable
from typing import Protocol

from socketio_pg.core import green
from socketio_pg.log.replay import Step
from socketio_pg.protocol.fanout import Manager

logger = logging.getLogger("socketio_pg.replay")


class Steps(Protocol):
    """One of a client's replays, of a channel or of a live table: they send their pages in turn."""

    @property
    def channel(self) -> str:
        """Its name among those of its client."""

    def held(self) -> bool:
        """Return whether there is anything left to send."""

    def step(self) -> Step:
        """Send the next page."""

    def wait_moved(self) -> None:
        """After :attr:`Step.AHEAD`, wait until a step can do something, for at most a second."""


class Replays:
    """The replays in progress of all clients. A page is sent when at most ``most_waiting`` bytes wait for the client.

    ``on_failure(sid, channel)`` is called when a replay cannot go on because of a bug.

    A client has one green thread while it has replays. A waiting replay has its position and no messages.
    """

    #: Seconds after which other green threads run.
    slice_seconds = 0.002

    def __init__(self, manager: Manager, most_waiting: int, on_failure: Callable[[str, str], None]) -> None:
        self._manager = manager
        self._most_waiting = most_waiting
        self._on_failure = on_failure
        #: sid → channel → replay, in the order of their turns.
        self._queues: dict[str, dict[str, Steps]] = {}

    def send(self, sid: str, channel: str, replay: Steps) -> None:
        """Send ``replay`` in turn with the other replays of the client; it takes the place of one of the same channel.

        Returns immediately when another green thread sends to this client, otherwise after the last of its replays.
        """
        if not replay.held():
            return  # unsubscribed, or replaced, in the meantime
        queue = self._queues.get(sid)
        if queue is not None:
            queue[channel] = replay
            return
        queue = self._queues[sid] = {channel: replay}
        try:
            self._send(sid, queue)
        finally:
            del self._queues[sid]

    def discard(self, sid: str, channel: str) -> None:
        """Forget the replay of a subscription that has ended."""
        self._queues.get(sid, {}).pop(channel, None)

    def _send(self, sid: str, queue: dict[str, Steps]) -> None:
        turn_ends = time.monotonic() + self.slice_seconds
        ahead = 0
        while queue:
            socket = self._manager.socket_of(sid)
            if socket is None or not socket.wait_room(self._most_waiting):
                return  # the client has left
            if not queue:
                return  # unsubscribed in the meantime
            channel, replay = next(iter(queue.items()))
            step = self._step(sid, replay)
            if queue.get(channel) is replay:
                del queue[channel]
                if step is not Step.OVER:
                    queue[channel] = replay  # to the end of the queue
            ahead = ahead + 1 if step is Step.AHEAD else 0
            if ahead >= len(queue) > 0:
                replay.wait_moved()
                ahead = 0
            if time.monotonic() > turn_ends:
                green.sleep()
                turn_ends = time.monotonic() + self.slice_seconds

    def _step(self, sid: str, replay: Steps) -> Step:
        channel = replay.channel
        try:
            return replay.step()
        except Exception:  # a bug, which must not end the other replays of this client
            logger.exception("a replay of '%s' failed", channel)
            if replay.held():
                self._on_failure(sid, channel)
            return Step.OVER
