"""Listens for all nodes, on the one that relays, and passes on what it hears: see `remote_listener`."""

import logging
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import monotonic

from socketio_pg.cluster.remote_listener import HEARD, Command
from socketio_pg.core import green
from socketio_pg.core.errors import DatabaseUnavailableError, InvalidChannelError
from socketio_pg.postgres.database import Database
from socketio_pg.postgres.listener import ListenCancelledError, Listener, Notification, NotifyGap

logger = logging.getLogger("socketio_pg.forwarder")


@dataclass(slots=True)
class _Node:
    """What a node wants, and when it was heard."""

    channels: set[str] = field(default_factory=set)
    seen: float = 0.0


class Forwarder:
    """While it leads, listens to what any node wants. ``tell`` sends a message to all nodes.

    ``eager``: from the beginning of its turn, and not only when a node asks for it.
    """

    #: Seconds between two messages, so that nodes notice what was lost, and the end.
    beat_interval = 1.0
    #: Seconds of silence after which a node counts as gone.
    node_timeout = 20.0
    #: Seconds that one attempt to listen may take; the node asks again.
    listen_timeout = 10.0
    #: Seconds without a message of its own after which it hears nothing of others, either.
    deaf_after = 5.0
    #: Notifications, and channels, in one message.
    most = 1000

    def __init__(self, database: Database, tell: Callable[[Command], None], *, eager: bool) -> None:
        self._database = database
        self._tell = tell
        self._eager = eager
        self._leading = False
        self._listener: Listener | None = None
        self._id = ""
        self._number = 0
        #: When a message of its own came back.
        self._echo = 0.0
        self._nodes: dict[str, _Node] = {}
        self._wanted: Counter[str] = Counter()
        self._confirming: set[tuple[str, str]] = set()
        #: Numbers are given and messages sent in one order.
        self._speaking = green.Lock()
        self._worker = green.Worker()

    def lead(self, leading: bool) -> None:
        """Begin, or end: this node relays from now on, or does not any more."""
        self._leading = leading
        if leading and self._eager:
            self._begin()
        elif not leading and self._listener is not None:
            listener, self._listener = self._listener, None
            listener.stop()
            self._worker.stop()

    def _begin(self) -> Listener:
        # A name for this turn alone: what is on its way of an earlier one is nobody's any more.
        self._id, self._number, self._echo = uuid.uuid4().hex, 0, monotonic()
        self._nodes, self._wanted, self._confirming = {}, Counter(), set()
        self._listener = listener = Listener(self._database, self._on_notifications, self._on_gap)
        listener.start()
        self._worker.start(self._run)
        logger.info("listening for all nodes")
        return listener

    def hear_itself(self, command: Command) -> None:
        """What a leader says, itself perhaps."""
        if command["leader"] == self._id:
            self._echo = monotonic()

    def receive(self, command: Command) -> None:
        """What a node wants: a message :data:`WANTED`, see :meth:`RemoteListener._tell`."""
        if not self._leading or command["database"] != self._database.name:
            return
        listener = self._listener or self._begin()
        name, add = command["node"], set(command["add"])
        everything = command.get("all", False)
        if name not in self._nodes and not everything:
            green.run_soon(self._say, forgotten=[name])
            return
        node = self._nodes.setdefault(name, _Node())
        node.seen = monotonic()
        self._give_up(node, node.channels - add if everything else set(command["remove"]))
        for channel in add - node.channels:
            self._wanted[channel] += 1
            if self._wanted[channel] == 1:
                listener.acquire(channel)
        node.channels |= add
        if len(node.channels) != command["count"]:
            # A message of its was lost.
            green.run_soon(self._say, node=name, again=True)
        if add:
            green.run_soon(self._confirm, listener, name, add)

    def _give_up(self, node: _Node, channels: set[str]) -> None:
        for channel in channels & node.channels:
            self._wanted[channel] -= 1
            if not self._wanted[channel]:
                del self._wanted[channel]
                if self._listener is not None:
                    self._listener.release(channel)
        node.channels -= channels

    def _confirm(self, listener: Listener, name: str, channels: Iterable[str]) -> None:
        """Tell a node when these are listened to."""
        # It asks again while it waits.
        mine = [channel for channel in channels if (name, channel) not in self._confirming]
        self._confirming.update((name, channel) for channel in mine)
        listening, refused = [], []
        for channel in mine:
            if listener is not self._listener:
                return  # its turn has ended, and nobody is woken any more
            try:
                listener.wait(channel, self.listen_timeout)
                listening.append(channel)
            except InvalidChannelError as error:
                refused.append([channel, error.message])
            except (ListenCancelledError, DatabaseUnavailableError):
                continue
        if listener is not self._listener:
            return
        self._confirming.difference_update((name, channel) for channel in mine)
        wanted = self._nodes[name].channels if name in self._nodes else set()
        # Those that were given up meanwhile are not listened to for long.
        listening = [channel for channel in listening if channel in wanted]
        for start in range(0, len(listening), self.most):
            self._say(node=name, listening=listening[start : start + self.most])
        if refused:
            self._say(node=name, refused=refused)

    def _run(self) -> None:
        while True:
            try:
                self._say()
                self._forget_silent()
            except Exception:  # a bug, then; without another word all nodes would take this one for gone
                logger.exception("speaking to the nodes failed; going on")
            green.sleep(self.beat_interval)

    def _forget_silent(self) -> None:
        silent = [name for name, node in self._nodes.items() if self._is_silent(node)]
        if not silent:
            return
        # By number, and first: a node that is there all the same knows that it is not passed on to any more.
        self._say(forgotten=silent)
        for name in silent:
            node = self._nodes.get(name)
            if node is not None and self._is_silent(node):
                del self._nodes[name]
                self._give_up(node, set(node.channels))

    def _is_silent(self, node: _Node) -> bool:
        return monotonic() - node.seen > self.node_timeout

    def _on_notifications(self, notifications: Sequence[Notification]) -> None:
        for start in range(0, len(notifications), self.most):
            self._say(notifications=notifications[start : start + self.most])

    def _on_gap(self, gap: NotifyGap) -> None:
        self._say(gaps=[[gap.channel, gap.since.isoformat(), gap.until.isoformat()]])

    def _say(self, **what: object) -> None:
        """``notifications``: channels and texts, in order; ``gaps``: channels, since and until when; ``forgotten``:
        nodes whose channels do not count any more. To one ``node``: ``listening``: channels that are listened to now;
        ``refused``: channels and why; ``again``: it is to say everything it wants. ``number`` goes up by one;
        ``problem``: why the leader does not listen, None if it does; ``as_of``: until when it has missed nothing,
        except for the gaps that it has yet to tell when there is a problem.
        """
        listener = self._listener
        if listener is not None:
            with self._speaking:
                self._number += 1
                heard = {
                    "leader": self._id,
                    "number": self._number,
                    "problem": listener.problem or self._deaf(),
                    "as_of": listener.heard.isoformat(),
                }
                self._tell({"method": HEARD, "database": self._database.name, **heard, **what})

    def _deaf(self) -> str | None:
        if monotonic() - self._echo <= self.deaf_after:
            return None
        return "what it says does not come back to it over MESSAGE_QUEUE, so it does not hear what nodes want"
