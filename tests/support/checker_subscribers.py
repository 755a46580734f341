"""The checker's subscribers, which record everything that arrives, and its Socket.IO publishers."""

import math
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tests.support.checker import (
    Delivered,
    Disconnected,
    Improper,
    Note,
    Outcome,
    Sent,
    Subscribed,
    Transaction,
    Unsubscribed,
    digest,
)
from tests.support.checker_clients import Client, Loop
from tests.support.checker_plans import payload, plan_publish

#: Part of the error message when it is unknown whether the message was published (docs/protocol.md).
UNCERTAIN = "may have been sent or not"


class Subscriber(Client):
    """Subscribes to ``channels``, and after each reconnect again with ``since``. Records duplicates too.

    ``restless``: the mean seconds between disconnecting, switching to the other node, pausing, unsubscribing or
    resubscribing, until :meth:`calm`.
    """

    def __init__(
        self,
        loop: Loop,
        name: str,
        ports: Sequence[int],
        channels: Sequence[str],
        random: Random,
        epoch: str,
        restless: float | None = None,
    ) -> None:
        super().__init__(loop, name, ports, random)
        self.channels = channels
        self.notes: list[Note] = []
        #: Channel → last processed position.
        self.positions: dict[str, int] = {}
        self._epoch = epoch
        self._restless = restless
        self._calm = False
        #: Subscribed channels, channels with a pending request → its ``since``, and with a pending `unsubscribe`.
        self._subscribed: set[str] = set()
        self._asked: dict[str, int | None] = {}
        self._leaving: set[str] = set()
        #: Number of events after which it disconnects without handling what else has arrived.
        self._leaves_in = math.inf
        if restless is not None:
            loop.later(random.expovariate(1 / restless), self._fidget)

    def calm(self) -> None:
        """Stop being restless. Can be called from any thread."""
        self._calm = True

    def caught_up(self, newest: dict[str, int]) -> bool:
        """Return whether it has reached ``newest``, the last position of each channel. From any thread."""
        # A pending request will move it back and replay messages.
        return not self._asked and all(
            self.positions.get(channel, -1) >= newest.get(channel, 0) for channel in self.channels
        )

    def _on_connected(self, answer: dict[str, Any]) -> None:
        for channel in self.channels:
            self._subscribe(channel)

    def _subscribe(self, channel: str) -> None:
        if not self._up or channel in self._asked:
            return
        since = self.positions.get(channel)
        body: dict[str, Any] = {"channel": channel}
        if since is None:
            # The first request: without replay, with some history, or from the start.
            since = self._random.choice((None, None, 0))
            if since is None:
                body["history"] = self._random.choice((0, 5, 1000))
        if since is not None:
            body["since"] = {"epoch": self._epoch, "position": since}
        self._asked[channel] = since
        self.request("subscribe", body, lambda answer: self._answered(channel, answer))

    def _answered(self, channel: str, answer: dict[str, Any]) -> None:
        if answer.get("ok"):
            if channel in self._asked:
                self._improper(f"got an acknowledgement for {channel} without the event subscribed")
        else:
            del self._asked[channel]
            if answer["error"]["code"] != "database_unavailable":
                self._improper(f"could not subscribe to {channel}: {answer}")
            self._loop.later(self._random.uniform(0.1, 1.0), lambda: self._subscribe(channel))

    def _on_event(self, event: str, argument: Any) -> None:
        if event == "event":
            self._take(argument)
        elif event == "subscribed":
            self._note_subscribed(argument)
        elif event == "unsubscribed":
            self._subscribed.discard(argument["channel"])
            self.notes.append(Unsubscribed(argument["channel"]))
        elif event == "error" or (event == "gap" and argument["reason"] != "database_connection_lost"):
            self._improper(f"got {event} {argument}")

    def _note_subscribed(self, argument: dict[str, Any]) -> None:
        channel, position = argument["channel"], argument.get("position")
        if channel not in self._asked:
            self._improper(f"was subscribed to {channel} without a request")
            return
        if argument.get("epoch") != self._epoch:
            self._improper(f"got the epoch {argument.get('epoch')} instead of {self._epoch}")
        self.notes.append(Subscribed(channel, position, self._asked.pop(channel), argument.get("recovered")))
        if position is not None:
            self.positions[channel] = position
        self._subscribed.add(channel)

    def _take(self, argument: dict[str, Any]) -> None:
        body, channel, position = argument["payload"], argument["channel"], argument.get("position")
        if not isinstance(body, dict):
            self._improper(f"got {str(body)[:100]!r} of {channel} at {position}, which was never published")
            return
        self.notes.append(
            Delivered(channel, position, body["id"], digest(body), argument.get("published_at"), "replayed" in argument)
        )
        if position is not None:
            self.positions[channel] = position
        self._leaves_in -= 1
        if self._leaves_in < 0:
            self.leave(self._random.expovariate(1.0), self._random.choice(self._ports))

    def _on_lost(self) -> None:
        self._subscribed.clear()
        self._asked.clear()
        self._leaving.clear()
        self._leaves_in = math.inf
        self.notes.append(Disconnected())

    def _improper(self, text: str) -> None:
        self.notes.append(Improper(text))

    # -- restless actions-----------------------------------------------------------------------------------------------

    def _fidget(self) -> None:
        assert self._restless is not None
        if self._calm:
            return
        self._random.choice(self._actions())()
        self._loop.later(self._random.expovariate(1 / self._restless), self._fidget)

    def _actions(self) -> list[Callable[[], None]]:
        return [
            lambda: self.leave(self._random.expovariate(1.0)),
            lambda: self.leave(self._random.uniform(0.0, 0.2), self._random.choice(self._ports)),
            self._leave_soon,
            lambda: self.pause(self._random.uniform(0.5, 4.0)),
            self._subscribe_again,
            self._unsubscribe_for_a_while,
        ]

    def _leave_soon(self) -> None:
        self._leaves_in = self._random.randint(0, 30)

    def _subscribe_again(self) -> None:
        """Subscribe again on the same connection: messages are repeated, as requested."""
        channel = self._random.choice(self.channels)
        if channel in self._subscribed:
            self._subscribe(channel)

    def _unsubscribe_for_a_while(self) -> None:
        channel = self._random.choice(self.channels)
        if channel not in self._subscribed or channel in self._asked:
            return

        def answered(answer: dict[str, Any]) -> None:
            self._leaving.discard(channel)
            if answer != {"ok": True, "channel": channel}:
                self._improper(f"could not unsubscribe from {channel}: {answer}")
            # Mostly immediately, because a broadcast may be in progress.
            seconds = self._random.choice((0.0, 0.0, self._random.expovariate(1.0)))
            self._loop.later(seconds, lambda: self._subscribe(channel))

        self._leaving.add(channel)
        self.request("unsubscribe", {"channel": channel}, answered)


class SocketPublisher(Client):
    """Publishes with ``durable: true``, several messages at a time, until :meth:`stop`.

    Half of the messages have an id. Those it sends again, on any node, until they are answered with success: whatever
    became of the first attempts, each is then published once.
    """

    def __init__(
        self, loop: Loop, name: str, ports: Sequence[int], channels: Sequence[str], random: Random, pace: float
    ) -> None:
        super().__init__(loop, name, ports, random)
        self._channels = channels
        self._pace = pace
        self._stopping = False
        self._pending: dict[str, Transaction] = {}
        #: Requests with ids that have been sent and not been answered with success, by their ids.
        self._repeated: dict[str, tuple[Transaction, dict[str, Any]]] = {}
        #: Repeats that were published already, and the positions in the answers.
        self.duplicates = 0
        self.positions: dict[str, int | None] = {}
        self.transactions: list[Transaction] = []
        self.problems: list[str] = []
        loop.later(random.expovariate(1 / pace), self._publish)

    def stop(self) -> None:
        """Stop publishing. Can be called from any thread."""
        self._stopping = True

    @property
    def idle(self) -> bool:
        """True when no answers are pending. Can be read from any thread."""
        return self._stopping and not self._pending and not self._repeated

    def _publish(self) -> None:
        if self._stopping:
            return
        for _ in range(self._random.choice((1, 1, 2, 6))):
            self._publish_one()
        self._loop.later(self._random.expovariate(1 / self._pace), self._publish)

    def _publish_one(self) -> None:
        plan = plan_publish(self._random, self._channels)
        identifier = f"{self.name}-{len(self.transactions)}"
        body = payload(self._random, identifier, plan)
        if not self._up:
            return
        transaction = Transaction(identifier, outcome=Outcome.UNKNOWN)
        transaction.messages.append(Sent(identifier, plan.channel, digest(body), time.monotonic()))
        self.transactions.append(transaction)
        request = {"channel": plan.channel, "payload": body, "durable": True}
        if self._random.random() < 0.5:
            request["id"] = identifier
            self._repeated[identifier] = (transaction, request)
        self._send(transaction, request)

    def _send(self, transaction: Transaction, request: dict[str, Any]) -> None:
        self._pending[transaction.name] = transaction
        self.request("publish", request, lambda answer: self._answered(transaction, answer))

    def _answered(self, transaction: Transaction, answer: dict[str, Any]) -> None:
        self._pending.pop(transaction.name, None)
        if answer.get("ok"):
            self._repeated.pop(transaction.name, None)
            self.duplicates += answer.get("duplicate", False)
            self.positions[transaction.name] = answer["position"]
            transaction.outcome, transaction.acknowledged = Outcome.COMMITTED, time.monotonic()
            return
        # Too many bytes wait at a node whose database does not answer. Refused before it was handled.
        if answer["error"]["code"] not in ("database_unavailable", "rate_limited"):
            self._improper(f"could not publish: {answer}")
        if transaction.name in self._repeated:
            self._loop.later(self._random.uniform(0.05, 0.5), lambda: self._repeat(transaction.name))
        elif UNCERTAIN not in answer["error"]["message"]:
            transaction.outcome = Outcome.ROLLED_BACK

    def _repeat(self, identifier: str) -> None:
        if self._up and identifier in self._repeated and identifier not in self._pending:
            self._send(*self._repeated[identifier])

    def _on_connected(self, answer: dict[str, Any]) -> None:
        for identifier in list(self._repeated):
            self._repeat(identifier)

    def _on_lost(self) -> None:
        self._pending.clear()

    def _improper(self, text: str) -> None:
        self.problems.append(f"{self.name}: {text}")
