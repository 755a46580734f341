"""Holds live messages of the log back from subscriptions while a replay brings them up to date."""

from collections.abc import Callable, Hashable, Mapping

from socketio_pg.log.log import Log
from socketio_pg.log.replay import HasPosition, HeldReplay, ReplayReceiver
from socketio_pg.log.starts import Start
from socketio_pg.pubsub.hub import Hub


class Holds:
    """The subscriptions of ``hub`` and their replays of ``log``."""

    def __init__(self, hub: Hub, log: Log) -> None:
        self._hub = hub
        self._log = log

    def hold(
        self, subscriber: Hashable, channel: str, after: int, receiver: ReplayReceiver, start: Start = None
    ) -> HeldReplay:
        """Hold live messages of the log back from a subscription, for a replay that begins after a position.

        The caller takes the replay's steps; the last one ends the hold. A later hold of the same subscription takes the
        place of this one, and the end of the subscription ends it. ``start``: see :meth:`Log.replay`.
        """
        hub, replay = self._hub, self._log.replay(channel, after, start)
        hub.hold(subscriber, channel, replay)
        return HeldReplay(
            replay,
            receiver,
            held=lambda: hub.held_by(subscriber, channel) is replay,
            release=lambda: hub.release(subscriber, channel),
        )

    def hold_together(
        self,
        subscriber: Hashable,
        starts: Mapping[str, int],
        receiver: ReplayReceiver,
        start: Start = None,
        *,
        on_release: Callable[[], None],
    ) -> HeldReplay:
        """Hold several subscriptions like :meth:`hold`, for one replay of all: channel → the position to begin after.

        Its messages are in the order of their positions. ``on_release()`` is called when it has arrived at the live
        messages; it must not wait.
        """
        hub, replay = self._hub, self._log.replay_together(starts, start)
        for channel in starts:
            hub.hold(subscriber, channel, replay)

        def release() -> None:
            for channel in starts:
                hub.release(subscriber, channel)
            on_release()

        def held() -> bool:
            return all(hub.held_by(subscriber, channel) is replay for channel in starts)

        return HeldReplay(replay, receiver, held, release)

    def position_of(self, subscriber: Hashable, channel: str, live: bool = False) -> int:
        """Return the position that the next messages of a subscription follow.

        ``live``: it was complete before, and so gets the messages that are being delivered at the moment.
        """
        replay = self._hub.held_by(subscriber, channel)
        if isinstance(replay, HasPosition):
            return replay.position
        return self._log.delivered if live else self._log.position
