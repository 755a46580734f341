"""Takes ephemeral messages from clients and from other processes, and sends them in rounds."""

import functools
import logging
import math
import re
import time
from collections.abc import Callable
from typing import Any

from socketio_pg.cluster.bus import Bus
from socketio_pg.core import green, metrics
from socketio_pg.core.channels import validate_channel
from socketio_pg.core.errors import ForbiddenError, InvalidRequestError, RateLimitedError, SocketIOPGError
from socketio_pg.core.rules import Rules
from socketio_pg.ephemeral.exchange import Exchange
from socketio_pg.ephemeral.messages import EphemeralMessage, is_ephemeral, requested_ephemeral
from socketio_pg.ephemeral.rounds import Rounds
from socketio_pg.ephemeral.senders import EphemeralSenders, Sender
from socketio_pg.ephemeral.sending import EphemeralSending, Slices
from socketio_pg.protocol.answers import showable
from socketio_pg.protocol.fanout import Manager
from socketio_pg.protocol.packets import ACK, read_json
from socketio_pg.pubsub.hub import Hub

logger = logging.getLogger("socketio_pg.ephemeral")

#: Seconds between two rounds of a channel for each subscriber, and at most: so a channel costs 1,000 writes a second.
PAUSE_PER_SUBSCRIBER, MAX_PAUSE = 0.001, 0.05
#: The same for each subscriber of a large channel, several times as long as a write takes.
PAUSE_OF_LARGE = 0.000_05
#: Seconds between two looks whether slow clients have caught up.
LOOK_AT_SLOW = 0.05
#: Seconds between two errors for a client that requests no acknowledgements.
ERROR_PAUSE = 1.0
#: Channels of a client whose permission is asked at the same time, and messages of each that wait for it.
MAX_ASKING = 20
#: The beginning of an ephemeral publication, up to the JSON; the group is the id of the acknowledgement.
_HEAD = re.compile(r'2([0-9]{0,15})(?=\["publish",)')

_received = metrics.ephemeral_messages.labels("clients")
_rate_limited = metrics.ephemeral_dropped.labels("rate_limited")
_replaced = metrics.ephemeral_dropped.labels("replaced")


class Ephemeral:
    """The ephemeral messages of one process.

    ``heard(sid)`` notes that a client has sent something. ``check_rate(sid)`` raises :class:`RateLimitedError`, and
    ``cut_off(sid, error)`` disconnects a client; it may wait. ``bus`` leads to the other processes.
    """

    def __init__(
        self,
        manager: Manager,
        hub: Hub,
        senders: EphemeralSenders,
        sending: EphemeralSending,
        heard: Callable[[str], None],
        check_rate: Callable[[str], None],
        cut_off: Callable[[str, SocketIOPGError], None],
        bus: Bus,
        rules: Rules,
        max_bytes: int,
    ) -> None:
        self._manager = manager
        self._hub = hub
        self._senders = senders
        self._sending = sending
        self._heard = heard
        self._check_rate = check_rate
        self._cut_off = cut_off
        self._rules = rules
        self._max_bytes = max_bytes
        #: Longer packets take the way of all other events: they have too large a payload, or many escapes.
        self._max_packet = 2 * max_bytes + 1_000
        self._rounds = Rounds(self._pause_between)
        self._exchange = Exchange(bus, self._add)
        self._worker = green.Worker()
        #: Wakes the worker, which sleeps until a time (monotonic).
        self._wake = green.Event()
        self._sleeps_until = 0.0

    def start(self) -> None:
        """Start to send. Call it after a fork, not before."""
        self._worker.start(self._run)

    def stop(self) -> None:
        """End the green thread."""
        self._worker.stop()

    def drop(self, sid: str) -> None:
        """Forget a client that has left."""
        self._senders.drop(sid)
        self._sending.kept.take(sid)

    # -- from clients --------------------------------------------------------------------------------------------------

    def take_at_once(self, eio_sid: str, text: str) -> bool:
        """Handle an event of a client if it is an ephemeral publication, without a green thread. Does not wait.

        Return False, without any effect, for an event that must take the usual way.
        """
        if len(text) > self._max_packet or '"ephemeral"' not in text:
            return False
        head = _HEAD.match(text)
        if head is None:
            return False
        sid = self._manager.sid_from_eio_sid(eio_sid, "/")
        sender = None if sid is None or not self._manager.is_connected(sid, "/") else self._senders.get(sid)
        request = _request(text[head.end() :])
        if sender is None or request is None:
            return False
        id = int(head[1]) if head[1] else None
        try:
            taken = self._take(sender, request, acknowledged=id is not None)
        except SocketIOPGError as error:
            self._answer_error(sender, eio_sid, id, error, request.get("channel"))
            return True
        if taken and id is not None:
            self._manager.server.send_packet(eio_sid, ACK, "/", [{"ok": True, "channel": request["channel"]}], id)
        return taken

    def _take(self, sender: Sender, request: dict[str, Any], *, acknowledged: bool) -> bool:
        """Accept a request, now or when its permission is known. Return False if its answer must wait for that."""
        known = self._senders.knows(sender, request.get("channel"))
        if not known and acknowledged and self._senders.may_wait:
            return False
        message = self._checked(sender, request)
        if not known and not self._senders.may_wait:
            self._senders.require(sender, message.channel)
            known = True
        if known:
            self.accept(message)
            return True
        waiting = sender.asking.get(message.channel)
        if waiting is None:
            if len(sender.asking) >= MAX_ASKING:
                raise RateLimitedError("too many of your messages wait for permissions", channel=message.channel)
            sender.asking[message.channel] = {message.key: message}
            green.run_soon(self._ask, sender, message.channel)
        elif message.key in waiting or len(waiting) < MAX_ASKING:
            waiting[message.key] = message
        return True

    def publish(self, sid: str, request: dict[str, Any]) -> dict[str, Any]:
        """Handle an ephemeral publication that has come the usual way. Returns its acknowledgement. May wait.

        Raises :class:`SocketIOPGError`.
        """
        sender = self._sender(sid)
        message = self._checked(sender, request)
        self._senders.require(sender, message.channel)
        if self._sender(sid) is not sender:
            raise InvalidRequestError("the client has got other claims meanwhile", channel=message.channel)
        self.accept(message)
        return {"ok": True, "channel": message.channel}

    def _sender(self, sid: str) -> Sender:
        sender = self._senders.get(sid)
        if sender is None:
            raise InvalidRequestError("the client has disconnected")
        return sender

    def _checked(self, sender: Sender, request: dict[str, Any]) -> EphemeralMessage:
        sid = sender.session.sid
        self._heard(sid)
        try:
            self._check_rate(sid)
        except RateLimitedError as error:
            _rate_limited.inc()
            if error.cut_off:
                green.run_soon(self._cut_off, sid, error)
            raise
        channel = validate_channel(request.get("channel"))
        rule = self._rules.of(channel)
        if rule.ephemeral is False:
            raise ForbiddenError("ephemeral messages are not allowed in this channel", channel=channel)
        return sender.message(channel, requested_ephemeral(request, min(self._max_bytes, rule.max_bytes or math.inf)))

    def _ask(self, sender: Sender, channel: str) -> None:
        """Ask for the permission that the messages of ``sender.asking`` need, and accept the newest of them."""
        sid = sender.session.sid
        error = None
        try:
            self._senders.require(sender, channel)
        except SocketIOPGError as found:
            error = found
        finally:
            waiting = sender.asking.pop(channel, {})
        if self._senders.get(sid) is not sender:
            return  # it has left, or has other claims, with which it sends more
        if error is not None:
            self._answer_error(sender, self._manager.eio_sid_from_sid(sid, "/"), None, error, channel)
        else:
            for message in waiting.values():
                self.accept(message)

    def _answer_error(
        self, sender: Sender, eio_sid: str | None, id: int | None, error: SocketIOPGError, channel: object
    ) -> None:
        now = time.monotonic()
        if id is None:
            if now - sender.told_at < ERROR_PAUSE:
                return
            sender.told_at = now
        if error.channel is None and isinstance(channel, str):
            error.channel = showable(channel) or None
        if eio_sid is not None:
            self._manager.server.answer_error(sender.session.sid, eio_sid, "/", id, error)

    def accept(self, message: EphemeralMessage) -> None:
        """Let a client's message wait for the next round, and for the next batch to the other processes."""
        _received.inc()
        self._add(message)
        self._wake_for(self._exchange.add(message))

    # -- rounds --------------------------------------------------------------------------------------------------------

    def _add(self, message: EphemeralMessage) -> None:
        # Only channels of subscriptions: other rooms have the names of clients, or are the application's.
        if not self._hub.has_channel(message.channel):
            return
        self._wake_for(self._rounds.add(message, time.monotonic()))

    def _wake_for(self, due: float) -> None:
        if due < self._sleeps_until:
            self._wake.send()

    def _pause_between(self, channel: str) -> float:
        subscribers = self._hub.count_subscribers(channel)
        return max(min(MAX_PAUSE, PAUSE_PER_SUBSCRIBER * subscribers), PAUSE_OF_LARGE * subscribers)

    def _run(self) -> None:
        while True:
            slices = Slices()
            self._guarded(lambda: self._exchange.send_due(time.monotonic()))
            for channel, messages in self._rounds.take_due(time.monotonic()):
                self._guarded(functools.partial(self._sending.send, channel, messages, slices))
            self._guarded(functools.partial(self._sending.send_kept, slices))
            slices.end()
            replaced = self._rounds.replaced + self._exchange.replaced
            if replaced:
                _replaced.inc(replaced)
                self._rounds.replaced = self._exchange.replaced = 0
            # At most half of the process's time, however much there is to send.
            green.sleep(slices.spent)
            self._sleep()

    def _sleep(self) -> None:
        """Wait until there is something to send."""
        now = time.monotonic()
        times = [self._rounds.next_due(), self._exchange.next_due(), now + LOOK_AT_SLOW if self._sending.kept else None]
        due = min((time for time in times if time is not None), default=None)
        if due is not None and due <= now:
            return
        self._wake = green.Event()
        self._sleeps_until = math.inf if due is None else due
        try:
            self._wake.wait(None if due is None else due - now)
        except green.TimedOut:
            pass
        finally:
            self._sleeps_until = 0.0

    def _guarded(self, send: Callable[[], None]) -> None:
        try:
            send()
        except Exception:  # a bug, which must not end the messages of other channels
            logger.exception("ephemeral messages could not be sent")


def _request(text: str) -> dict[str, Any] | None:
    """Return the object of an ephemeral publication; None for another event."""
    try:
        event = read_json(text)
        if isinstance(event, list) and len(event) == 2 and isinstance(event[1], dict) and is_ephemeral(event[1]):
            return event[1]
    except SocketIOPGError:
        return None  # it is answered as all other events are
    return None
