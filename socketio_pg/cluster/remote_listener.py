"""Listens through another node: with LISTEN=leader only the node that relays (the leader) listens to PostgreSQL.

    acquire → send WANTED → the leader listens, and confirms → deliver its notifications in the order of their numbers
                  ↑                                                        │
                  └── request all channels again ←── a number is missing, or the leader has changed (gap per channel)

Messages travel over MESSAGE_QUEUE, which may lose some; the leader numbers its messages, so that losses are detected.
Between the workers of one node they travel over Unix sockets, and the leader is the worker that leads.
"""

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from socketio_pg.core import green
from socketio_pg.core.errors import InvalidChannelError
from socketio_pg.core.problems import Problem
from socketio_pg.postgres.companions import Notification
from socketio_pg.postgres.listener import NotifyGap, Waiters

logger = logging.getLogger("socketio_pg.remote_listener")

#: A message of the queue. For its fields see the senders: :meth:`RemoteListener._tell` and :meth:`Forwarder._send`.
Command = dict[str, Any]
#: Its ``method``: a node's request for channels, and the leader's notifications and confirmations.
WANTED, HEARD = "socketio_pg_wanted", "socketio_pg_heard"


def separate(notifications: Sequence[Notification]) -> dict[str, Any]:
    """Return the fields ``notifications`` and, if some have metadata, ``metadata`` of a message :data:`HEARD`.

    ``metadata`` has the index and the JSON text of each: nodes of an older version ignore it, and get the payload.
    """
    if not any("\0" in text for _, text in notifications):
        return {"notifications": notifications}
    parts = [(channel, *text.partition("\0")) for channel, text in notifications]
    return {
        "notifications": [(channel, payload) for channel, payload, _, _ in parts],
        "metadata": [(index, meta) for index, (_, _, _, meta) in enumerate(parts) if meta],
    }


def together(command: Command) -> Sequence[Notification]:
    """Return the notifications of a message :data:`HEARD` as the listener gave them to :func:`separate`."""
    found = [(channel, text) for channel, text in command.get("notifications", ())]
    for index, meta in command.get("metadata", ()):
        channel, payload = found[index]
        found[index] = channel, f"{payload}\0{meta}"
    return found


class RemoteListener:
    """Replaces :class:`socketio_pg.postgres.listener.Listener` on a node that does not listen itself.

    :meth:`receive` gets the leader's messages, and calls ``on_notifications`` and ``on_gap`` as ``Listener`` does.
    ``tell`` sends a message to all nodes; ``carrier`` names for the operator what carries it.
    """

    #: Seconds without a message from the leader after which it counts as gone.
    leader_timeout = 5.0
    #: Seconds after which unconfirmed channels are requested again.
    retry_interval = 1.0
    #: Seconds between two heartbeats to the leader.
    beat_interval = 5.0
    #: A gap begins this long before the last message from the leader.
    margin = timedelta(seconds=1)

    def __init__(
        self,
        on_notifications: Callable[[Sequence[Notification]], None],
        on_gap: Callable[[NotifyGap], None],
        tell: Callable[[Command], None],
        carrier: str = "MESSAGE_QUEUE",
    ) -> None:
        self._on_notifications = on_notifications
        self._on_gap = on_gap
        self.tell = tell
        self._carrier = carrier
        self._id = uuid.uuid4().hex
        self._wanted: set[str] = set()
        self._listening: set[str] = set()
        self._gaps: dict[str, datetime] = {}
        self._waiters = Waiters()
        #: Unsent requests: channels, and whether they are wanted; or with ``_all`` the complete list.
        self._changes: dict[str, bool] = {}
        self._all = True
        #: Wanted channels without confirmation, and those among them that must be confirmed before this node is ready.
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
        """Whether the leader's messages arrive and it listens to all channels wanted at its first message."""
        return self.problem is None

    @property
    def problem(self) -> Problem | None:
        """The reason why it is not ready, for the operator; None when it is."""
        if self._leader is None:
            return Problem(f"no message from a leader has arrived over {self._carrier} yet")
        if time.monotonic() - self._heard_at > self.leader_timeout:
            return Problem(f"messages from the leader no longer arrive over {self._carrier}")
        if self._leaders_problem is not None:
            return Problem(f"the leader does not listen: {self._leaders_problem}")
        return Problem("waiting for the leader to listen to all channels") if self._settling else None

    @property
    def heard(self) -> datetime:
        """The time up to which it has missed nothing, except for gaps that it will report after a :attr:`problem`."""
        return self._heard

    @property
    def channels(self) -> int:
        """The number of channels that this node has asked the leader for."""
        return len(self._wanted)

    @property
    def connections(self) -> int:
        """The number of connections to the database: none."""
        return 0

    @property
    def backends(self) -> Mapping[int, int]:
        """Its connections to the database: none."""
        return {}

    def start(self) -> None:
        """Start the green thread. Call it after any fork, in the process that listens. Idempotent."""
        if not self._worker.running:
            self._id = uuid.uuid4().hex  # one that was made before a fork would be that of all workers
            self._worker.start(self._run)

    def stop(self) -> None:
        """Stop the green thread."""
        self._worker.stop()

    def acquire(self, channel: str) -> None:
        """Listen to ``channel``, as :meth:`Listener.acquire` does."""
        self._wanted.add(channel)
        if channel not in self._listening:
            self._unconfirmed.add(channel)
            self._request(channel, True)

    def release(self, channel: str) -> None:
        """Stop listening to ``channel``, as :meth:`Listener.release` does; the leader keeps the grace time."""
        for channels in (self._wanted, self._listening, self._unconfirmed, self._settling):
            channels.discard(channel)
        self._gaps.pop(channel, None)
        self._request(channel, False)
        self._waiters.cancel(channel)

    def wait(self, channel: str, seconds: float) -> None:
        """Return once the leader listens to ``channel``. Raises as :meth:`Listener.wait`."""
        if channel not in self._listening:
            self._waiters.wait(channel, seconds)

    def _request(self, channel: str, wanted: bool) -> None:
        self._changes[channel] = wanted
        self._change.send()

    # -- the green thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        sent = requested = 0.0
        while True:
            now = time.monotonic()
            # The request was lost, or the leader has not listened yet. A leader with a problem is not asked repeatedly.
            missing = self._unconfirmed and self._leaders_problem is None
            if missing and not self._all and now - requested >= self.retry_interval:
                self._changes |= dict.fromkeys(self._unconfirmed, True)
            if self._all or self._changes or now - sent >= self.beat_interval:
                sent = now
                if self._all or any(self._changes.values()):
                    requested = now
                try:
                    self._tell()
                except Exception:  # a bug: the leader notices missing requests by ``count``
                    logger.exception("sending a request to the leader failed; continuing")
            self._change = green.Event()
            if not self._changes and not self._all:
                try:
                    self._change.wait(self.retry_interval)
                except green.TimedOut:
                    continue

    def _tell(self) -> None:
        """Send a message :data:`WANTED`, which is also this node's heartbeat.

        ``add`` and ``remove``: channels; ``all``: ``add`` is the complete list; ``count``: the resulting number of
        channels.
        """
        everything, changes = self._all, self._changes
        self._all, self._changes = False, {}
        add = self._wanted if everything else (channel for channel, wanted in changes.items() if wanted)
        command = {"add": list(add), "count": len(self._wanted)}
        if everything:
            command["all"] = True
        else:
            command["remove"] = [channel for channel, wanted in changes.items() if not wanted]
        self.tell({"method": WANTED, "node": self._id, **command})

    # -- from the queue, in its green thread ---------------------------------------------------------------------------

    def receive(self, command: Command) -> None:
        """Receive a message :data:`HEARD` from the leader, see :meth:`Forwarder._send`."""
        leader, number, as_of = str(command["leader"]), int(command["number"]), str(command["as_of"])
        leader_alive = time.monotonic() - self._heard_at <= self.leader_timeout
        if leader in self._former and leader_alive:
            return  # a former leader that has not noticed the new one yet
        if leader != self._leader:
            if leader in self._former:
                self._former.remove(leader)
            if self._leader is not None:
                self._former.append(self._leader)
            self._leader = leader
            self._request_all()
        elif number <= self._number:
            return  # out of order: it was treated as lost already
        elif number != self._number + 1:
            logger.warning("messages from the leader were lost on %s", self._carrier)
            self._request_all()
        self._number = number
        self._leaders_problem = command.get("problem")
        self._heard_at = time.monotonic()
        if self._leaders_problem is None:
            # The leader has reported all of its gaps: nothing else is missing up to that time.
            self._heard = datetime.fromisoformat(as_of)
        for channel, since, until in command.get("gaps", ()):
            if channel in self._listening:
                self._guarded(
                    self._on_gap, NotifyGap(channel, datetime.fromisoformat(since), datetime.fromisoformat(until))
                )
        heard = [(channel, text) for channel, text in together(command) if channel in self._wanted]
        if heard:
            self._guarded(self._on_notifications, heard)
        if self._id in command.get("forgotten", ()):
            self._request_all()
        if command.get("node") == self._id:
            self._receive_answer(command)

    def _receive_answer(self, command: Command) -> None:
        if command.get("again"):
            self._all = True
            self._change.send()
        for channel, problem in command.get("refused", ()):
            for channels in (self._wanted, self._unconfirmed, self._settling):
                channels.discard(channel)
            self._waiters.done(channel, InvalidChannelError(problem, channel=channel))
        self._confirm(command.get("listening", ()))

    def _request_all(self) -> None:
        """Request all channels again: earlier requests and confirmations are void."""
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
            # The gap is reported before waiters resume: new subscribers have missed nothing.
            since = self._gaps.pop(channel, None)
            if since is not None:
                self._guarded(self._on_gap, NotifyGap(channel, since, now))
        for channel in confirmed:
            self._waiters.done(channel)

    def _guarded(self, function: Callable[[Any], None], argument: Any) -> None:
        try:
            function(argument)
        except Exception:  # a bug in the receiver: the following messages must be delivered
            logger.exception("a receiver of notifications failed")
