"""With LISTEN=leader, listens on behalf of all nodes and forwards notifications to them: see `remote_listener`."""

import logging
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import monotonic

from socketio_pg.cluster.remote_listener import HEARD, Command, separate
from socketio_pg.core import green
from socketio_pg.core.errors import DatabaseUnavailableError, InvalidChannelError
from socketio_pg.postgres.companions import Notification
from socketio_pg.postgres.listener import (
    ChannelListener,
    ListenCancelledError,
    NotifyGap,
    OnGap,
    OnNotifications,
)

logger = logging.getLogger("socketio_pg.forwarder")


CreateListener = Callable[[OnNotifications, OnGap], ChannelListener]


@dataclass(slots=True)
class _Node:
    """The channels that a node has asked for, and when its last message arrived."""

    channels: set[str] = field(default_factory=set)
    seen: float = 0.0


class Forwarder:
    """Listens to the channels of all nodes while this node is the leader. ``tell`` sends a message to all nodes.

    ``create_listener`` makes the listener of a term. ``eager``: starts when the node becomes the leader, otherwise when
    another node asks for it.
    """

    #: Seconds between two heartbeats, from which nodes detect lost messages and the end of the leader.
    beat_interval = 1.0
    #: Seconds without a message after which a node counts as gone.
    node_timeout = 20.0
    #: Seconds for one LISTEN; the node repeats its request after that.
    listen_timeout = 10.0
    #: Seconds without the echo of its own messages after which it assumes that other nodes' messages are lost, too.
    echo_timeout = 5.0
    #: Notifications, or channels, in one message.
    batch_size = 1000

    def __init__(self, create_listener: CreateListener, tell: Callable[[Command], None], *, eager: bool) -> None:
        self._create_listener = create_listener
        self._tell = tell
        self._eager = eager
        self._leading = False
        self._listener: ChannelListener | None = None
        self._id = ""
        self._number = 0
        #: When one of its own messages last came back.
        self._echo = 0.0
        self._nodes: dict[str, _Node] = {}
        self._wanted: Counter[str] = Counter()
        self._confirming: set[tuple[str, str]] = set()
        #: Keeps messages in the order of their numbers.
        self._sending = green.Lock()
        self._worker = green.Worker()

    @property
    def listener(self) -> ChannelListener | None:
        """The listener, while it listens."""
        return self._listener

    def lead(self, leading: bool) -> None:
        """Start or stop: this node has become the leader, or no longer is."""
        self._leading = leading
        if leading and self._eager:
            self._begin()
        elif not leading and self._listener is not None:
            listener, self._listener = self._listener, None
            listener.stop()
            self._worker.stop()

    def _begin(self) -> ChannelListener:
        # A new name for each term, so that nodes ignore messages of an earlier one.
        self._id, self._number, self._echo = uuid.uuid4().hex, 0, monotonic()
        self._nodes, self._wanted, self._confirming = {}, Counter(), set()
        self._listener = listener = self._create_listener(self._on_notifications, self._on_gap)
        listener.start()
        self._worker.start(self._run)
        logger.info("listening for all nodes")
        return listener

    def receive_echo(self, command: Command) -> None:
        """Receive a message from a leader, to notice the echo of this node's own messages."""
        if command["leader"] == self._id:
            self._echo = monotonic()

    def receive(self, command: Command) -> None:
        """Receive a node's request: a message :data:`WANTED`, see :meth:`RemoteListener._tell`."""
        if not self._leading:
            return
        listener = self._listener or self._begin()
        name, add = command["node"], set(command["add"])
        everything = command.get("all", False)
        if name not in self._nodes and not everything:
            green.run_soon(self._send, forgotten=[name])
            return
        node = self._nodes.setdefault(name, _Node())
        node.seen = monotonic()
        self._release(node, node.channels - add if everything else set(command["remove"]))
        for channel in add - node.channels:
            self._wanted[channel] += 1
            if self._wanted[channel] == 1:
                listener.acquire(channel)
        node.channels |= add
        if len(node.channels) != command["count"]:
            # A message from the node was lost.
            green.run_soon(self._send, node=name, again=True)
        if add:
            green.run_soon(self._confirm, listener, name, add)

    def _release(self, node: _Node, channels: set[str]) -> None:
        for channel in channels & node.channels:
            self._wanted[channel] -= 1
            if not self._wanted[channel]:
                del self._wanted[channel]
                if self._listener is not None:
                    self._listener.release(channel)
        node.channels -= channels

    def _confirm(self, listener: ChannelListener, name: str, channels: Iterable[str]) -> None:
        """Notify a node once these channels are listened to."""
        # The node repeats its request while it waits.
        mine = [channel for channel in channels if (name, channel) not in self._confirming]
        self._confirming.update((name, channel) for channel in mine)
        listening, refused = [], []
        for channel in mine:
            if listener is not self._listener:
                return  # the term has ended
            try:
                listener.wait(channel, self.listen_timeout)
                listening.append(channel)
            except InvalidChannelError as error:
                refused.append([channel, error.to_wire()["message"]])
            except (ListenCancelledError, DatabaseUnavailableError):
                continue
        if listener is not self._listener:
            return
        self._confirming.difference_update((name, channel) for channel in mine)
        wanted = self._nodes[name].channels if name in self._nodes else set()
        # Without channels that the node has released meanwhile: listening to them may end at any time.
        listening = [channel for channel in listening if channel in wanted]
        for start in range(0, len(listening), self.batch_size):
            self._send(node=name, listening=listening[start : start + self.batch_size])
        if refused:
            self._send(node=name, refused=refused)

    def _run(self) -> None:
        while True:
            try:
                self._send()
                self._forget_silent()
            except Exception:  # a bug: without further heartbeats all nodes would consider this one gone
                logger.exception("sending a heartbeat to the nodes failed; continuing")
            green.sleep(self.beat_interval)

    def _forget_silent(self) -> None:
        silent = [name for name, node in self._nodes.items() if self._is_silent(node)]
        if not silent:
            return
        # Sent before the channels are released: a node that is alive learns that it gets no more notifications.
        self._send(forgotten=silent)
        for name in silent:
            node = self._nodes.get(name)
            if node is not None and self._is_silent(node):
                del self._nodes[name]
                self._release(node, set(node.channels))

    def _is_silent(self, node: _Node) -> bool:
        return monotonic() - node.seen > self.node_timeout

    def _on_notifications(self, notifications: Sequence[Notification]) -> None:
        for start in range(0, len(notifications), self.batch_size):
            self._send(**separate(notifications[start : start + self.batch_size]))

    def _on_gap(self, gap: NotifyGap) -> None:
        self._send(gaps=[[gap.channel, gap.since.isoformat(), gap.until.isoformat()]])

    def _send(self, **fields: object) -> None:
        """Send a message :data:`HEARD` to all nodes.

        To all nodes: ``notifications``: channels and payloads, in order; ``metadata``: see
        :func:`separate`; ``gaps``: channel, since, until of each; ``forgotten``: nodes whose requests have been
        discarded. To one ``node``: ``listening``: channels that are now listened to; ``refused``: channels and reasons;
        ``again``: it must repeat its whole request.

        Every message has ``number``, which increases by one; ``problem``: why the leader does not listen, None if it
        does; ``as_of``: the time up to which it has missed nothing, except for gaps that it will report after a
        ``problem``.
        """
        listener = self._listener
        if listener is not None:
            with self._sending:
                self._number += 1
                problem = listener.problem
                header = {
                    "leader": self._id,
                    "number": self._number,
                    "problem": self._echo_problem() if problem is None else problem.public,
                    "as_of": listener.heard.isoformat(),
                }
                self._tell({"method": HEARD, **header, **fields})

    def _echo_problem(self) -> str | None:
        if monotonic() - self._echo <= self.echo_timeout:
            return None
        return "its own messages do not come back over MESSAGE_QUEUE, so it may not receive the nodes' requests"
