"""A subscriber in a separate process that reads as fast as it can and checks every message."""

import gc
import json
import multiprocessing
import select
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from typing import Any

from bench.wire import PONG, Conversation, FrameReader, ProtocolError

RECEIVED, POSITION, ARRIVED = 0, 1, 2
"""Indexes of the shared numbers: messages, the last position, arrival of the last message (CLOCK_MONOTONIC, ns)."""
READ_BYTES = 1 << 18


class Subscriber:
    """A WebSocket client that is subscribed to one channel. Raises ProtocolError for an error in its process.

    Positions that do not increase by one, a `gap` in the log, and `recovered: false` are errors: in these benchmarks
    all messages of the log are in one channel. With `timed` it records the arrival of each message by its number.
    """

    def __init__(self, port: int, channel: str, since: Mapping[str, object] | None = None, timed: bool = False) -> None:
        context: SpawnContext = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._numbers: Any = context.RawArray("q", 3)
        arguments = (theirs, self._numbers, port, channel, since, timed)
        self._process = context.Process(target=_run, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        #: The server's answer, with the epoch and the position after which messages follow.
        self.subscribed: dict[str, Any] = self._answer(60.0)
        #: When the request to subscribe was sent.
        self.began: int = self._answer(1.0)

    @property
    def received(self) -> int:
        return int(self._numbers[RECEIVED])

    @property
    def position(self) -> int:
        return int(self._numbers[POSITION])

    @property
    def arrived(self) -> int:
        return int(self._numbers[ARRIVED])

    def wait(self, messages: int, seconds: float) -> bool:
        """Wait until it has received ``messages`` in total. Return whether it has."""
        deadline = time.monotonic() + seconds
        while self.received < messages and time.monotonic() < deadline:
            if self._pipe.poll(0.002):
                self._answer(0.0)  # without a request, it can only be an error
        return self.received >= messages

    def finish(self) -> dict[int, int]:
        """Stop. Return the arrival time of each message by its number, if `timed`."""
        self._pipe.send("stop")
        arrivals: dict[int, int] = self._answer(10.0)
        return arrivals

    def close(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()

    def _answer(self, seconds: float) -> Any:
        try:
            if not self._pipe.poll(seconds):
                raise ProtocolError(f"the subscriber did not answer within {seconds} s")
            answer = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise ProtocolError("the subscriber died") from error
        if isinstance(answer, Exception):
            raise answer
        return answer


class _Link:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent = 0

    def send(self, data: bytes) -> None:
        self.sent = time.monotonic_ns()
        self.socket.sendall(data)

    def reopen(self) -> None:
        raise NotImplementedError("only long-polling uses this")


class _Messages:
    """Checks received messages and updates the shared numbers."""

    def __init__(self, numbers: Any, timed: bool) -> None:
        self.subscribed: dict[str, Any] | None = None
        self.arrivals: dict[int, int] = {}
        self._numbers = numbers
        self._timed = timed

    def take(self, texts: list[bytes], link: _Link) -> None:
        now = time.monotonic_ns()
        received, position = self._numbers[RECEIVED], self._numbers[POSITION]
        for text in texts:
            if text.startswith(b'42["event",'):
                received += 1
                # The position follows the payload; messages of NOTIFY have none.
                _, found, rest = text.rpartition(b'"position":')
                if found:
                    here = int(rest.partition(b",")[0])
                    if here != position + 1:
                        raise ProtocolError(f"position {here} came after {position}")
                    position = here
                if self._timed:
                    self.arrivals[json.loads(text[2:])[1]["payload"]["n"]] = now
            elif text.startswith(b'42["subscribed",'):
                self.subscribed = json.loads(text[2:])[1]
                if self.subscribed.get("recovered") is False:
                    raise ProtocolError(f"not recovered: {text!r}")
                position = self.subscribed.get("position", 0)
            elif text == b"2":
                link.send(PONG)
            elif text.startswith(b'42["gap",') and b'"database_connection_lost"' in text:
                pass  # concerns NOTIFY only
            elif text.startswith((b'42["gap",', b"1", b"41", b"44")):
                raise ProtocolError(f"the server sent {text[:300]!r}")
        # The count is written last: a reader that sees it also sees the other new values.
        self._numbers[POSITION], self._numbers[ARRIVED] = position, now
        self._numbers[RECEIVED] = received


def _run(
    pipe: Connection, numbers: Any, port: int, channel: str, since: Mapping[str, object] | None, timed: bool
) -> None:
    gc.disable()
    try:
        link = _Link(port)
        messages = _Messages(numbers, timed)
        frames = _subscribe(pipe, link, messages, channel, since)
        buffer = memoryview(bytearray(READ_BYTES))
        # The pipe becomes readable on "stop", and when its other end is closed.
        while pipe.fileno() not in select.select([link.socket.fileno(), pipe.fileno()], [], [])[0]:
            size = link.socket.recv_into(buffer)
            if not size:
                raise ProtocolError("the server closed the connection")
            messages.take(frames.feed(bytes(buffer[:size])), link)
        pipe.send(messages.arrivals)
    except Exception as error:
        with suppress(OSError):  # the parent process may have closed the pipe
            pipe.send(ProtocolError(f"{type(error).__name__}: {error}"))


def _subscribe(
    pipe: Connection, link: _Link, messages: _Messages, channel: str, since: Mapping[str, object] | None
) -> FrameReader:
    conversation = Conversation(link, (channel,), since)
    handshake = conversation.websocket()
    next(handshake)
    try:
        while True:
            handshake.send(link.socket.recv(READ_BYTES))
    except StopIteration:
        pass
    began = link.sent
    texts, frames = conversation.rest()
    messages.take(texts, link)
    while messages.subscribed is None:
        messages.take(frames.feed(link.socket.recv(READ_BYTES)), link)
    pipe.send(messages.subscribed)
    pipe.send(began)
    return frames
