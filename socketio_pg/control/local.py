"""Controls the clients of this process: Socket.IO connections in all namespaces, streams, sessions."""

from collections.abc import Sequence
from typing import Any

import orjson

from socketio_pg.access.sessions import Session, Sessions
from socketio_pg.control.local_clients import MAX_CHARACTERS, LocalClients
from socketio_pg.core import green, metrics
from socketio_pg.core.errors import EndedByServerError
from socketio_pg.core.patterns import overlap
from socketio_pg.gateway.delivery import Delivery
from socketio_pg.gateway.live_tables import LiveTables
from socketio_pg.presence.presence import Presence
from socketio_pg.protocol.server import Server
from socketio_pg.pubsub.hub import Hub
from socketio_pg.recovery.keeping import Keeping
from socketio_pg.streams.streams import Streams

#: Connections that are disconnected before other green threads run.
SLICE = 100


class LocalControl:
    """The clients of this process; ``clients`` describes them. Counts are of connections."""

    def __init__(
        self,
        server: Server,
        sessions: Sessions,
        clients: LocalClients,
        hub: Hub,
        delivery: Delivery,
        tables: LiveTables,
        streams: Streams,
        keeping: Keeping,
        presence: Presence,
    ) -> None:
        self._server = server
        self._sessions = sessions
        #: Describes the connections.
        self.clients = clients
        self._hub = hub
        self._delivery = delivery
        self._tables = tables
        self._streams = streams
        self._keeping = keeping
        self._presence = presence

    def connections(self, sub: str | None, sid: str | None, limit: int, room: str | None = None) -> dict[str, Any]:
        """Return the newest ``connections``, of all clients, of a user or of one id, and their ``count``.

        With ``room`` only those in this room, or subscribed to the channel of this name.
        """
        found = self._of(sid) if sid is not None else self._sessions.all() if sub is None else self._sessions.of(sub)
        if sid is not None and sub is not None:
            found = [session for session in found if session.subject == sub]
        if room is not None:
            found = [session for session in found if self._is_in(session, room)]
        found.sort(key=lambda session: session.since, reverse=True)
        listed: list[dict[str, Any]] = []
        characters = 0
        for number, session in enumerate(found[:limit], 1):
            described = self.clients.describe(session)
            if described is not None:
                characters += len(orjson.dumps(described))
                if characters > MAX_CHARACTERS:
                    break
                listed.append(described)
            if number % SLICE == 0:
                green.sleep()
        return {"connections": listed, "count": len(found)}

    def disconnect_user(self, sub: str) -> int:
        """Disconnect a user, who does not come back without being told to, and forget the sessions that wait."""
        self._keeping.forget_user(sub)
        self._presence.leave_as(sub)
        return self._disconnect(self._sessions.of(sub))

    def disconnect_connection(self, sid: str) -> int:
        """Disconnect one connection."""
        return self._disconnect(self._of(sid))

    def unsubscribe_user(self, sub: str, channel: str) -> int:
        """End the subscriptions of a user that get messages of a channel, or of those that match a pattern."""
        count = 0
        error = EndedByServerError("the server has ended this subscription")
        for session in self._sessions.of(sub):
            if self._streams.owns(session.sid):
                # Its other channels too: they have one cursor.
                count += self._streams.end_subscription(session.sid, channel, error)
            else:
                for name in self._hub.channels_of(session.sid):
                    if overlap(name, channel):
                        self._delivery.unsubscribe(session.sid, name)
                        count += 1
                count += self._tables.end(session.sid, lambda name: overlap(name, channel))
        return count

    def send_to_user(self, sub: str, payload_json: str) -> int:
        """Send the event `direct` to all connections of a user. ``payload_json`` is strict JSON text."""
        body = {"payload": orjson.Fragment(payload_json)}
        count = 0
        for session in self._sessions.of(sub):
            if self._streams.owns(session.sid):
                count += self._streams.send(session.sid, "direct", body)
            elif session.namespace == "/":
                self._server.manager.emit("direct", body, "/", to=session.sid, ignore_queue=True)
                count += 1
        return count

    def _of(self, sid: str) -> list[Session]:
        session = self._sessions.get(sid)
        return [] if session is None else [session]

    def _disconnect(self, sessions: Sequence[Session]) -> int:
        for number, session in enumerate(sessions, 1):
            # Each has a green thread, because an application's disconnect handler may take long.
            green.run_soon(self._disconnect_one, session)
            if number % SLICE == 0:
                green.sleep()
        return len(sessions)

    def _disconnect_one(self, session: Session) -> None:
        sid, namespace = session.sid, session.namespace
        error = EndedByServerError("the server has disconnected this client")
        if self._streams.owns(sid):
            self._streams.disconnect(sid, error)
            return
        metrics.cut_off.labels(error.code).inc()
        self._server.manager.emit("error", error.to_wire(), namespace, to=sid, ignore_queue=True)
        # With Socket.IO's DISCONNECT, after which its clients do not reconnect by themselves.
        self._server.disconnect(sid, namespace, ignore_queue=True)

    def _is_in(self, session: Session, room: str) -> bool:
        # A subscription with a filter, and a stream, are in no Socket.IO room of the channel's name.
        rooms = self._server.manager.rooms.get(session.namespace, {})
        return session.sid in rooms.get(room, ()) or self._hub.is_subscribed(session.sid, room)
