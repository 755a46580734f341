"""Sends the members of channels to the clients that watch them: the state first, and then differences."""

from typing import Any

from socketio_pg.core import green
from socketio_pg.core.errors import DatabaseUnavailableError
from socketio_pg.presence.presence import Presence
from socketio_pg.protocol.fanout import Manager
from socketio_pg.recovery.keeping import Keeping


class PresenceRooms:
    """The clients of this process that are members of channels, or watch them. Nothing waits here but what says so.

    ``keeping`` stores both with the sessions of clients that can recover them.
    """

    #: Seconds for which differences are gathered, and the number of clients that are told in a second at most.
    gather_seconds, told_per_second = 0.2, 5000
    #: Seconds between two looks at clients that read too slowly.
    slow_seconds = 0.5

    def __init__(self, presence: Presence, manager: Manager, keeping: Keeping, send_buffer_bytes: int) -> None:
        self._presence = presence
        self._manager = manager
        self._keeping = keeping
        self._most_buffered = send_buffer_bytes // 4
        #: Client → the channels that it watches; channel → the number of these clients.
        self._watching: dict[str, set[str]] = {}
        self._watchers: dict[str, int] = {}
        #: Clients and channels that are not told differences, because they read too slowly.
        self._slow: dict[tuple[str, str], None] = {}
        self._catching_up = green.Worker()
        #: Channels whose watchers are to be told soon, or are being told.
        self._due: set[str] = set()
        self._telling: set[str] = set()
        presence.receive(self._changed)

    # -- clients -------------------------------------------------------------------------------------------------------

    def is_watching(self, sid: str, channel: str) -> bool:
        return channel in self._watching.get(sid, ())

    def channels_of(self, sid: str) -> set[str]:
        """Return the channels that a client watches, or is a member of."""
        return {*self._watching.get(sid, ()), *(one.channel for one in self._presence.of_client(sid))}

    def all(self) -> set[tuple[str, str]]:
        """Return all clients that watch channels or are members of any, with these channels."""
        watching = {(sid, channel) for sid, channels in self._watching.items() for channel in channels}
        return watching | {(one.client, one.channel) for one in self._presence.own()}

    def watch(self, sid: str, channel: str) -> None:
        """Send a client the differences from now on. `Presence.roster` has loaded the channel.

        Raises :class:`DatabaseUnavailableError` if that was too long ago.
        """
        if not self.is_watching(sid, channel):
            if self._presence.watch(channel) is None:
                raise DatabaseUnavailableError("the members of this channel cannot be read at the moment")
            self._watching.setdefault(sid, set()).add(channel)
            self._watchers[channel] = self._watchers.get(channel, 0) + 1
            self._manager.enter_room(sid, "/", _room(channel))
            self.record(sid, channel)

    def unwatch(self, sid: str, channel: str) -> None:
        """Send a client no more differences."""
        channels = self._watching.get(sid, set())
        if channel in channels:
            channels.discard(channel)
            if not channels:
                del self._watching[sid]
            self._watchers[channel] -= 1
            if not self._watchers[channel]:
                del self._watchers[channel]
            self._presence.unwatch(channel)
            self._manager.leave_room(sid, "/", _room(channel))
            self._slow.pop((sid, channel), None)
            self.record(sid, channel)

    def leave(self, sid: str, channel: str) -> None:
        """End a client's membership. It may still watch."""
        if self._presence.leave(sid, channel):
            self.record(sid, channel)

    def end(self, sid: str, channel: str) -> None:
        """End a client's membership, and watching."""
        self.leave(sid, channel)
        self.unwatch(sid, channel)

    def leave_all(self, sid: str) -> None:
        """End all memberships of a client that leaves for good."""
        self._presence.leave_all(sid)

    def lose(self, sid: str) -> None:
        """Note that a client has lost its connection, if it has not left for good."""
        for channel in list(self._watching.get(sid, ())):
            self.unwatch(sid, channel)
        self._presence.lose(sid)

    def record(self, sid: str, channel: str) -> None:
        """Store what a client is in a channel with its session, if it can recover it."""
        membership = self._presence.get(sid, channel)
        recorded: dict[str, Any] = {"watch": True} if self.is_watching(sid, channel) else {}
        if membership is not None:
            recorded |= {"key": membership.key, "state": membership.state}
            recorded |= {"ref": membership.ref, "joined_at": membership.joined_at}
        self._keeping.set_presence(sid, channel, recorded or None)

    # -- events --------------------------------------------------------------------------------------------------------

    def tell_ended(self, sid: str, channel: str, reason: str) -> None:
        """Tell a client that it is a member no longer, or sees the members no longer."""
        joined, watching = self._presence.get(sid, channel) is not None, self.is_watching(sid, channel)
        body = {"channel": channel, "reason": reason, "joined": joined, "watching": watching}
        self._manager.emit("presence_ended", body, "/", to=sid, ignore_queue=True)

    def tell_state(self, sid: str) -> None:
        """Send a client the state of all channels that it watches."""
        for channel in list(self._watching.get(sid, ())):
            self._tell_state(sid, channel)

    def _tell_state(self, sid: str, channel: str) -> None:
        if self._presence.watched(channel) is not None:
            body = {"channel": channel} | self._presence.state(channel)
            self._manager.emit("presence_state", body, "/", to=sid, ignore_queue=True)

    def _changed(self, channel: str) -> None:
        if channel not in self._due and channel not in self._telling:
            self._due.add(channel)
            seconds = max(self.gather_seconds, self._watchers.get(channel, 0) / self.told_per_second)
            green.call_later(seconds, lambda: green.run_soon(self._tell, channel))

    def _tell(self, channel: str) -> None:
        """Send the differences of a channel. Waits, in large rooms."""
        self._due.discard(channel)
        roster = self._presence.watched(channel)
        difference = None if roster is None else roster.difference()
        if roster is None or difference is None:
            return
        self._telling.add(channel)
        try:
            self._pass_by_slow(channel)
            if difference.restarts:
                body = {"channel": channel} | self._presence.state(channel)
                self._manager.emit("presence_state", body, "/", to=_room(channel), ignore_queue=True)
            else:
                body = {"channel": channel} | difference.to_wire()
                self._manager.emit("presence", body, "/", to=_room(channel), ignore_queue=True)
        finally:
            self._telling.discard(channel)
            if roster.changed:
                self._changed(channel)

    # -- clients that read too slowly ----------------------------------------------------------------------------------

    def _pass_by_slow(self, channel: str) -> None:
        for sid in self._manager.lagging(_room(channel), self._most_buffered):
            self._manager.leave_room(sid, "/", _room(channel))
            self._slow[sid, channel] = None
            self._catching_up.start(self._catch_up)

    def _catch_up(self) -> None:
        while self._slow:
            green.sleep(self.slow_seconds)
            for sid, channel in list(self._slow):
                socket = self._manager.socket_of(sid)
                if socket is not None and socket.buffered <= self._most_buffered // 2:
                    del self._slow[sid, channel]
                    self._manager.enter_room(sid, "/", _room(channel))
                    self._tell_state(sid, channel)


def _room(channel: str) -> str:
    """Return the room of the clients that watch a channel's members. Channel names have no control characters."""
    return f"{channel}\2"
