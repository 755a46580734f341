"""One client's subscription to a live table: sends its rows, then the changes until it is live.

`live_tables` makes it, and sends the changes of live ones.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from socketio_pg.core import green, metrics
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.errors import DatabaseError, LogNotInstalledError, SocketIOPGError
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.core.messages import with_numbers_as_strings
from socketio_pg.log.replay import Step
from socketio_pg.protocol.encoded import EncodedPacket
from socketio_pg.protocol.fanout import Manager
from socketio_pg.tables.changes import Event
from socketio_pg.tables.loading import Shown, Wanted
from socketio_pg.tables.reading import pauses
from socketio_pg.tables.requests import Place
from socketio_pg.tables.sequence import RowsPage, RowsSequence
from socketio_pg.tables.views import Form, RestartError, View

logger = logging.getLogger("socketio_pg.tables")
_limited_log = RateLimitedLog(logger)


def turn_name(place: Place) -> str:
    """Return a name for the turns of a subscription, which no channel has."""
    return f"\2{place.table}\0{place.id or ''}"


class LiveSubscription:
    """A subscription of the client ``sid``, in turn with its replays (`replays`).

    ``on_restart(subscription, reason)`` is called when it needs its rows again, ``on_end(subscription, error)`` when it
    cannot go on.
    """

    #: Pages that are sent while the feed waits for this subscription.
    last_pages = 3
    #: Seconds between two reads of the rows.
    restart_pause = 0.5
    #: Seconds before the first retry when the database does not answer; doubles up to the second value.
    retry = (0.2, 5.0)

    def __init__(
        self,
        manager: Manager,
        sid: str,
        wanted: Wanted,
        on_restart: Callable[["LiveSubscription", str], None],
        on_end: Callable[["LiveSubscription", SocketIOPGError], None],
    ) -> None:
        self._manager = manager
        self.sid = sid
        self.wanted = wanted
        self._on_restart = on_restart
        self._on_end = on_end
        #: Its name among the replays of the client, not the channel of the watch.
        self.channel = turn_name(wanted.place)
        self.ended = False
        #: Whether its rows are being read again.
        self.restarting = False
        #: Why rows that are being read are out of date already; None if they are not.
        self.outdated: str | None = None
        self._began = float("-inf")
        self.shown: Shown | None = None
        self.sequence: RowsSequence | None = None
        #: Its view, once it is live.
        self.view: View | None = None
        #: Why the rows are sent again; None at first.
        self.reason: str | None = None
        #: Whether it has just been where the feed was.
        self._near = False
        self._backoff = Backoff(*self.retry)

    def begin(self, shown: Shown, sequence: RowsSequence, reason: str | None) -> bool:
        """Take the place of what was sent before. Return False if the sequence cannot be joined any more."""
        if not sequence.add(self):
            return False
        sequence.feed.users += 1
        self.shown, self.sequence, self.reason = shown, sequence, reason
        self._near = False
        self._began = time.monotonic()
        return True

    def restart_in(self) -> float:
        """Return the seconds until its rows may be read again."""
        return max(0.0, self._began + self.restart_pause - time.monotonic())

    def halt(self) -> None:
        """Send nothing more, until :meth:`begin`."""
        sequence, self.sequence = self.sequence, None
        if sequence is None:
            return
        sequence.feed.users -= 1
        sequence.discard(self)
        view, self.view = self.view, None
        if view is not None:
            sequence.feed.leave(view, self)
            room = view.leave(self.wanted.form)
            if room in self._manager.get_rooms(self.sid, "/"):
                self._manager.leave_room(self.sid, "/", room)

    # -- as the turn of a client

    def held(self) -> bool:
        """Return whether it is still on its way to be live."""
        return self.sequence is not None and self.view is None and not self.ended

    def wait_moved(self) -> None:
        """After :attr:`Step.AHEAD`, wait until the table's feed has moved on, for at most a second."""
        if self.sequence is not None:
            self.sequence.feed.wait_moved(1.0)

    def step(self) -> Step:
        """Send the next page. May wait for the database, and for the other changes of the table."""
        sequence = self.sequence
        if sequence is None or not self.held():
            return Step.OVER
        try:
            return self._step(sequence)
        except RestartError as restart:
            if self.sequence is sequence:
                self._on_restart(self, restart.reason)
        except (DatabaseError, LogNotInstalledError) as error:
            _limited_log(logging.WARNING, "a live table waits: %s; retrying", error)
            green.sleep(self._backoff.next())
            return Step.MORE
        except SocketIOPGError as error:
            if self.sequence is sequence:
                self._on_end(self, error)
        except Exception:  # a bug, which must not end the replays of this client
            logger.exception("a live table failed")
            if self.sequence is sequence:
                self._on_end(self, SocketIOPGError("the server failed to send this table"))
        return self._over()

    def _over(self) -> Step:
        """Return whether its turns are over. They are not if it has got its rows again while a step waited."""
        return Step.MORE if self.held() else Step.OVER

    def _step(self, sequence: RowsSequence) -> Step:
        if self._send_next(sequence):
            return Step.MORE
        feed = sequence.feed
        feed.check_epoch(sequence.epoch)
        if sequence.position > feed.position:
            return Step.AHEAD  # the rows are newer than what this node has delivered
        if sequence.position < feed.position and not self._near:
            upto = feed.position
            sequence.extend(self)
            self._near = sequence.position >= upto
            return Step.MORE
        self._near = False
        sent = 0
        with feed.paused():
            while self.sequence is sequence and self.held():
                if sent == self.last_pages:
                    return Step.MORE  # it is not that near, and its client's send buffer has to drain
                if self._send_next(sequence):
                    sent += 1
                    continue
                if sequence.position >= feed.position and sequence.settled:
                    break
                before = sequence.position, sequence.settled
                sequence.extend(self)
                if not sequence.has_more(self) and (sequence.position, sequence.settled) == before:
                    return Step.AHEAD  # messages that the rows include have no position yet
            if self.sequence is not sequence or not self.held():
                return self._over()
            if sequence.position > feed.position:
                return Step.AHEAD
            if feed.busy:  # it has waited for this pause for too long
                return Step.MORE
            # No other green thread runs from the comparison of the positions to the end.
            self.view = feed.join(sequence.key, self, sequence.keys)
            self._manager.enter_room(self.sid, "/", self.view.enter(self.wanted.form))
            sequence.discard(self)
            self._emit("live", {"epoch": feed.epoch, "position": feed.position})
        return Step.OVER

    def _send_next(self, sequence: RowsSequence) -> bool:
        """Send a page, if there is one."""
        page = sequence.next(self)
        if page is None:
            return False
        socket = self._manager.socket_of(self.sid)
        if socket is not None:
            packets = [self._rows_packet(sequence, page)] if isinstance(page, RowsPage) else self._packets(page)
            self._manager.emit_page(packets, self.sid, socket)
        return True

    def _rows_packet(self, sequence: RowsSequence, page: RowsPage) -> EncodedPacket:
        metrics.live_table_rows.inc(len(page.rows))
        text = f"[{','.join(page.rows)}]"
        if self.wanted.form.strings:
            text = with_numbers_as_strings(text, pauses())
        body: dict[str, Any] = {**self.wanted.place.to_wire(), "rows": orjson.Fragment(text)}
        if page.first:
            body |= self.description(sequence)
            if self.reason is not None:
                body["reason"] = self.reason
        return self._manager.encode_message("snapshot", body | {"first": page.first, "last": page.last})

    def description(self, sequence: RowsSequence) -> dict[str, Any]:
        """Return what the answer and the first page tell about the rows."""
        assert self.shown is not None
        return {
            "key": list(self.shown.table.key),
            "columns": list(self.shown.rights.columns),
            "epoch": sequence.epoch,
            "position": sequence.start,
            "complete": sequence.complete,
        }

    def _packets(self, events: Sequence[Event]) -> list[EncodedPacket]:
        return [self._manager.encode_message("event", event_body(self.wanted.form, event)) for event in events]

    def _emit(self, event: str, body: dict[str, Any]) -> None:
        self._manager.emit(event, self.wanted.place.to_wire() | body, "/", to=self.sid, ignore_queue=True)

    def tell_end(self, error: SocketIOPGError) -> None:
        """Report to the client that the subscription has ended."""
        wire = error.to_wire()
        self._emit("unsubscribed", {"reason": wire["code"], "message": wire["message"]})


def event_body(form: Form, event: Event) -> dict[str, Any]:
    """Return the argument of the Socket.IO event ``event``."""
    text = with_numbers_as_strings(event.payload, lambda: None) if form.strings else event.payload
    return {
        **form.place.to_wire(),
        "payload": orjson.Fragment(text),
        "position": event.position,
        "published_at": event.published_at,
    }
