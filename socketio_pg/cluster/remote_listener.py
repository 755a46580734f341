"""Listens through another node: with LISTEN=leader only the node that relays listens, and passes on what it hears.

    acquire → WANTED to the leader → it listens, and says so → deliver what it hears, in the order of its numbers
                    ↑                                                        │
                    └── ask for everything again ←── a number is missing, or another leads (gap for each channel)

What carries it is MESSAGE_QUEUE, which may lose messages: the leader numbers what it says.
"""

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from socketio_pg.core import green
from socketio_pg.core.errors import InvalidChannelError
from socketio_pg.core.logs import Complaints
from socketio_pg.postgres.database import Database
from socketio_pg.postgres.listener import Notification, NotifyGap, Waiters

logger = logging.getLogger("socketio_pg.remote_listener")
_complain = Complaints(logger)

#: A message of the queue; what its fields mean is said where it is sent: here, and in `forwarder`.
Command = dict[str, Any]
#: Its ``method``: what a node wants, and what the leader hears.
WANTED, HEARD = "socketio_pg_wanted", "socketio_pg_heard"


class RemoteListener:
    """What :class:`socketio_pg.listener.Listener` is, for a node that does not listen itself.

    :meth:`receive` gets the leader's messages, and calls ``on_notifications`` and ``on_gap`` as that one does. Of
    ``database`` only the name matters.
    """

    #: Seconds without a word from the leader after which it counts as gone.
    silence = 5.0
    #: Seconds after which what the leader has not confirmed is asked for again.
    retry_interval = 1.0
    #: Seconds between two signs of life to the leader.
    beat_interval = 5.0
    #: How far before the last word from the leader a gap begins.
    margin = timedelta(seconds=1)

    def __init__(
        self,
        database: Database,
        on_notifications: Callable[[Sequence[Notification]], None],
        on_gap: Callable[[NotifyGap], None],
        tell: Callable[[Command], None],
    ) -> None:
        self._database = database
        self._on_notifications = on_notifications
        self._on_gap = on_gap
        #: Sends a message to all nodes.
        self.tell = tell
        self._id = uuid.uuid4().hex
        self._wanted: set[str] = set()
        self._listening: set[str] = set()
        self._gaps: dict[str, datetime] = {}
        self._waiters = Waiters()
        #: What the leader is to be told: channels, and whether they are wanted. Or everything anew.
        self._changes: dict[str, bool] = {}
        self._all = True
        #: Wanted and not listened to yet, and those of them without which this node is not ready.
        self._unconfirmed: set[str] = set()
        self._settling: set[str] = set()
        self._leader: str | None = None
        self._former: deque[str] = deque(maxlen=100)
        self._number = 0
        self._leaders_problem: str | None = None
        self._heard = datetime.now(timezone.utc)
        self._heard_at = 0.0
        self._change = green.Event()
        self._worker = green.Worker()

    # -- for the other green threads -----------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the leader is heard, and listens to all that was wanted when it was heard first."""
        return self.problem is None

    @property
    def problem(self) -> str | None:
        """Why it is not ready, for the operator; None when it is."""
        if self._leader is None:
            return "no node that listens for the others has been heard yet over MESSAGE_QUEUE"
        if time.monotonic() - self._heard_at > self.silence:
            return "nothing is heard any more over MESSAGE_QUEUE of the node that listens for the others"
        if self._leaders_problem is not None:
            return f"the node that listens for the others does not: {self._leaders_problem}"
        return "waiting for the node that listens for the others" if self._settling else None

    def start(self) -> None:
        """Start the green thread, in the process that is to listen (after a fork)."""
        self._worker.start(self._run)

    def stop(self) -> None:
        """End the green thread."""
        self._worker.stop()

    def acquire(self, channel: str) -> None:
        """As :meth:`Listener.acquire`."""
        self._wanted.add(channel)
        if channel not in self._listening:
            self._unconfirmed.add(channel)
            self._tell_soon(channel, True)

    def release(self, channel: str) -> None:
        """As :meth:`Listener.release`; the leader waits a while before it gives the channel up."""
        for channels in (self._wanted, self._listening, self._unconfirmed, self._settling):
            channels.discard(channel)
        self._gaps.pop(channel, None)
        self._tell_soon(channel, False)
        self._waiters.cancel(channel)

    def wait(self, channel: str, seconds: float) -> None:
        """As :meth:`Listener.wait`."""
        if channel not in self._listening:
            self._waiters.wait(channel, seconds)

    def _tell_soon(self, channel: str, wanted: bool) -> None:
        self._changes[channel] = wanted
        self._change.send()

    # -- the green thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        spoken = asked = 0.0
        while True:
            now = time.monotonic()
            # Lost on the way, or the leader has not managed yet. One that cannot would only hear it over and over.
            missing = self._unconfirmed and self._leaders_problem is None
            if missing and not self._all and now - asked >= self.retry_interval:
                self._changes |= dict.fromkeys(self._unconfirmed, True)
            if self._all or self._changes or now - spoken >= self.beat_interval:
                spoken = now
                if self._all or any(self._changes.values()):
                    asked = now
                try:
                    self._tell()
                except Exception:  # a bug, then; what was not sent is noticed by the leader, by its count
                    logger.exception("speaking to the leader failed; going on")
            self._change = green.Event()
            if not self._changes and not self._all:
                try:
                    self._change.wait(self.retry_interval)
                except green.TimedOut:
                    continue

    def _tell(self) -> None:
        """``add`` and ``remove``: channels; ``all``: there are no others; ``count``: how many it should be then."""
        everything, changes = self._all, self._changes
        self._all, self._changes = False, {}
        add = self._wanted if everything else (channel for channel, wanted in changes.items() if wanted)
        command = {"add": list(add), "count": len(self._wanted)}
        if everything:
            command["all"] = True
        else:
            command["remove"] = [channel for channel, wanted in changes.items() if not wanted]
        self.tell({"method": WANTED, "database": self._database.name, "node": self._id, **command})

    # -- from the queue, in its green thread ---------------------------------------------------------------------------

    def receive(self, command: Command) -> None:
        """What the leader says: a message :data:`HEARD`, see :meth:`Forwarder._say`."""
        if command["database"] != self._database.name:
            _complain(
                logging.WARNING, "nodes of another database use the same MESSAGE_QUEUE_CHANNEL: %s", command["database"]
            )
            return
        leader, number, as_of = str(command["leader"]), int(command["number"]), str(command["as_of"])
        heard_lately = time.monotonic() - self._heard_at <= self.silence
        if leader in self._former and heard_lately:
            return  # it led once, and does not know yet that another does
        if leader != self._leader:
            if leader in self._former:
                self._former.remove(leader)
            if self._leader is not None:
                self._former.append(self._leader)
            self._leader = leader
            self._begin_again()
        elif number <= self._number:
            return  # overtaken on the way: it counted as lost already
        elif number != self._number + 1:
            logger.warning("messages of the node that listens were lost on MESSAGE_QUEUE")
            self._begin_again()
        self._number = number
        self._leaders_problem = command.get("problem")
        self._heard_at = time.monotonic()
        if self._leaders_problem is None:
            # It has told all of its gaps, then: until that time nothing is missing.
            self._heard = datetime.fromisoformat(as_of)
        for channel, since, until in command.get("gaps", ()):
            if channel in self._listening:
                self._guarded(
                    self._on_gap, NotifyGap(channel, datetime.fromisoformat(since), datetime.fromisoformat(until))
                )
        heard = [(channel, text) for channel, text in command.get("notifications", ()) if channel in self._wanted]
        if heard:
            self._guarded(self._on_notifications, heard)
        if self._id in command.get("forgotten", ()):
            self._begin_again()
        if command.get("node") == self._id:
            self._answered(command)

    def _answered(self, command: Command) -> None:
        if command.get("again"):
            self._all = True
            self._change.send()
        for channel, problem in command.get("refused", ()):
            for channels in (self._wanted, self._unconfirmed, self._settling):
                channels.discard(channel)
            self._waiters.done(channel, InvalidChannelError(problem, channel=channel))
        self._confirm(command.get("listening", ()))

    def _begin_again(self) -> None:
        """Nothing that was asked of the leader counts any more."""
        for channel in self._listening:
            self._gaps.setdefault(channel, self._heard - self.margin)
        self._listening.clear()
        self._unconfirmed = set(self._wanted)
        self._settling = set(self._wanted)
        self._all = True
        self._change.send()

    def _confirm(self, channels: Sequence[str]) -> None:
        now = datetime.now(timezone.utc)
        confirmed = [channel for channel in channels if channel in self._wanted]
        self._listening.update(confirmed)
        self._unconfirmed.difference_update(confirmed)
        self._settling.difference_update(confirmed)
        for channel in confirmed:
            # First the gap, then those who waited: who was not subscribed has missed nothing.
            since = self._gaps.pop(channel, None)
            if since is not None:
                self._guarded(self._on_gap, NotifyGap(channel, since, now))
        for channel in confirmed:
            self._waiters.done(channel)

    def _guarded(self, function: Callable[[Any], None], argument: Any) -> None:
        try:
            function(argument)
        except Exception:  # a bug of theirs: what follows is everybody's
            logger.exception("a receiver of notifications failed")
