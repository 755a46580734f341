"""One live tail: the messages of a channel or a pattern, for one client of the inspector, in batches it can follow.

It keeps the newest 1,000 that wait, and counts the others. A replay goes only as fast as the client takes it.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from socketio_pg.core import green
from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.pubsub.local import LocalSubscription
from socketio_pg.pubsub.pubsub import PubSub

#: Live messages that wait at most, and their characters: beyond that the oldest is dropped.
MAX_WAITING, MAX_CHARACTERS = 1_000, 4_000_000
#: Messages of a batch, and the characters after which it is complete.
BATCH, BATCH_CHARACTERS = 200, 500_000
#: Characters of a payload over which only its beginning is sent, and those of the beginning.
MAX_PAYLOAD, BEGINNING = 64_000, 2_000

#: Sends an event with its body to the client. Returns False while it reads too slowly, or has left.
Send = Callable[[str, dict[str, Any]], bool]


class Tail:
    """A tail with the ``number`` that its events have. ``send(event, body)`` sends to the client."""

    #: Seconds between two batches, and between two reports of a paused tail.
    pause, report = 0.1, 1.0

    def __init__(self, number: int, pubsub: PubSub, send: Send) -> None:
        self.number = number
        self._pubsub = pubsub
        self._send = send
        self._subscription: LocalSubscription | None = None
        #: What waits: the event, its body and its characters. Messages and gaps stay in order.
        self._waiting: deque[tuple[str, dict[str, Any], int]] = deque()
        self._characters = 0
        self._messages = 0
        self.dropped = 0
        self.paused = False
        self._stopped = False
        self._changed = green.Event()
        self._drained = green.Event()
        self._worker = green.Worker()

    @property
    def waiting(self) -> int:
        """The number of messages that wait."""
        return self._messages

    def start(self, name: str, since: Any, history: int | None, filter: Any) -> dict[str, Any]:
        """Begin, and return where. Waits for the LISTEN.

        Raises :class:`InvalidRequestError` and the other errors of :meth:`PubSub.subscribe`.
        """
        if filter is not None and not isinstance(filter, Mapping):
            raise InvalidRequestError('filter must be an object like {"new.status": "open"}')
        self._subscription = self._pubsub.subscribe_paced(
            name, self, self._wait_for_room, since=since, history=history, filter=filter
        )
        if self._stopped:  # the client has left meanwhile, or wants another tail
            self._pubsub.unsubscribe(self._subscription)
        else:
            self._worker.start(self._run)
        place = self._subscription.position
        return {"tail": self.number, "epoch": None, "position": None} | (dict(place) if place else {})

    def stop(self) -> None:
        """End the tail. Idempotent."""
        self._stopped = True
        if self._subscription is not None:
            self._pubsub.unsubscribe(self._subscription)
        self._drained.send()
        self._worker.stop()

    def set_paused(self, paused: bool) -> dict[str, Any]:
        """Keep messages back, or send them again. Return how many wait, and how many were dropped."""
        self.paused = paused
        self._wake()
        return {"tail": self.number, "waiting": self._messages, "dropped": self.dropped}

    # -- as Receiver ---------------------------------------------------------------------------------------------------

    def receive(self, message: EncodedMessage, extra: Mapping[str, Any]) -> None:
        text = message.payload_json
        body = message.to_wire() | dict(extra)
        body["received_at"] = round(time.time(), 3)
        body["bytes"] = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
        # As text: a browser that parses the payload with the event would round integers above 2^53.
        del body["payload"]
        body["text"] = text
        if len(text) > MAX_PAYLOAD:
            body |= {"cut": True, "text": text[:BEGINNING]}
        self._add("tail", body, min(len(text), BEGINNING if len(text) > MAX_PAYLOAD else len(text)) + 200)
        self._messages += 1
        if "replayed" not in extra:
            while self._messages > MAX_WAITING or (self._messages and self._characters > MAX_CHARACTERS):
                self._drop_oldest()

    def gap(self, gap: dict[str, Any]) -> None:
        self._add("tail_gap", gap, 200)

    def live(self, live: dict[str, Any]) -> None:
        self._add("tail_live", live, 200)

    def _add(self, event: str, body: dict[str, Any], characters: int) -> None:
        self._waiting.append((event, body, characters))
        self._characters += characters
        self._wake()

    def _drop_oldest(self) -> None:
        for place, (event, _, characters) in enumerate(self._waiting):
            if event == "tail":
                del self._waiting[place]
                self._messages -= 1
                self._characters -= characters
                self.dropped += 1
                return

    def _wake(self) -> None:
        self._changed.send()

    def _wait_for_room(self) -> None:
        """Wait until few messages wait: called between two pages of the replay."""
        green.sleep()
        while self._messages > BATCH and not self._stopped:
            self._drained.wait()

    # -- sending -------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        reported: tuple[int, int] | None = None
        while True:
            self._changed.wait()
            self._changed = green.Event()
            if self.paused:
                state = (self._messages, self.dropped)
                if state != reported:
                    reported = state
                    self._send("tail_waiting", {"tail": self.number, "waiting": state[0], "dropped": state[1]})
                green.sleep(self.report)
                continue
            reported = None
            while self._waiting and not self.paused:
                self._send_some()
                drained, self._drained = self._drained, green.Event()
                drained.send()
                green.sleep(self.pause)

    def _send_some(self) -> None:
        """Send the next batch of messages, or the next other event; nothing while the client reads too slowly."""
        event, body, characters = self._waiting[0]
        if event != "tail":
            if self._send(event, {"tail": self.number, **body}):
                self._waiting.popleft()
                self._characters -= characters
            return
        batch: list[dict[str, Any]] = []
        total = 0
        for event, body, characters in self._waiting:
            if event != "tail" or len(batch) >= BATCH or (batch and total + characters > BATCH_CHARACTERS):
                break
            batch.append(body)
            total += characters
        # Encoded once: payloads are inserted as they are.
        messages = orjson.Fragment(orjson.dumps(batch))
        if self._send("tail", {"tail": self.number, "messages": messages, "dropped": self.dropped}):
            for _ in batch:
                self._waiting.popleft()
            self._characters -= total
            self._messages -= len(batch)
            self.dropped = 0
