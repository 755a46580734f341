"""A small client of Server-Sent Events: the parser of the WHATWG's HTML standard, section 9.2.6, over http.client."""

import contextlib
import http.client
import itertools
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from tests.support.patience import PATIENCE, until


@dataclass(frozen=True)
class Event:
    name: str
    data: str
    id: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class Parser:
    """Turns the lines of a stream into events, and keeps the last event id and the time to connect again."""

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        self.retry: int | None = None
        self.comments = 0
        self._id = last_id
        self._name = ""
        self._data: list[str] = []
        self._rest = b""
        self._first = True

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yield the events that ``data`` completes."""
        text = self._rest + data
        # A CR at the end may be half of a line break.
        text, self._rest = (text[:-1], text[-1:]) if text.endswith(b"\r") else (text, b"")
        lines = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop() + self._rest
        for raw in lines:
            line = raw.decode()
            if self._first:
                self._first, line = False, line.removeprefix("\ufeff")
            yield from self._line(line)

    def _line(self, line: str) -> Iterator[Event]:
        if not line:
            self.last_id = self._id
            name, data = self._name or "message", self._data
            self._name, self._data = "", []
            if data:
                yield Event(name, "\n".join(data), self.last_id)
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name:
            self.comments += 1
        elif name == "data":
            self._data.append(value)
        elif name == "event":
            self._name = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry = int(value)


class RefusedError(Exception):
    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = body

    @property
    def code(self) -> str:
        code: str = json.loads(self.body)["error"]["code"]
        return code


class Stream:
    """One open stream, read by a thread. Raises :class:`RefusedError` for any answer but a 200."""

    def __init__(
        self,
        url: str,
        *channels: str,
        last_id: str = "",
        token: str | None = None,
        on_event: Callable[[Event], object] = lambda event: None,
        **query: Any,
    ) -> None:
        headers = {"Accept": "text/event-stream"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE)
        self._connection.request("GET", stream_path(*channels, **query), headers=headers)
        # http.client gives its socket to a response that ends with the connection.
        self._socket: socket.socket = self._connection.sock
        self.answer = self._connection.getresponse()
        if self.answer.status != 200:
            body = self.answer.read().decode()
            self._connection.close()
            raise RefusedError(self.answer.status, body)
        self.parser = Parser(last_id)
        self._on_event = on_event
        self.ended = threading.Event()
        #: All events so far.
        self.events: list[Event] = []
        self._queue: queue.Queue[Event | None] = queue.Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError, AttributeError):
            while data := self.answer.read1(65536):
                for event in self.parser.feed(data):
                    self.events.append(event)
                    self._on_event(event)
                    self._queue.put(event)
        self.ended.set()
        self._queue.put(None)

    def next(self, seconds: float = PATIENCE) -> Event:
        """Return the next event of any name."""
        event = self._queue.get(timeout=seconds)
        assert event is not None, f"the stream has ended, after {self.events[-3:]}"
        return event

    def until(self, name: str = "message", where: Callable[[Event], bool] = lambda event: True) -> Event:
        """Return the next event of that name, and skip others."""
        deadline = time.monotonic() + PATIENCE
        while True:
            event = self.next(max(0.1, deadline - time.monotonic()))
            if event.name == name and where(event):
                return event

    def payloads(self, count: int) -> list[Any]:
        """Return the payloads of the next messages."""
        return [self.until().json["payload"] for _ in range(count)]

    def wait_end(self) -> None:
        assert self.ended.wait(PATIENCE), "the stream has not ended"

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self.answer.close()
        self._connection.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def stream_path(*channels: str, **query: Any) -> str:
    given = [(name, json.dumps(value) if isinstance(value, dict) else value) for name, value in query.items()]
    if len(channels) == 1:
        path = f"/api/channels/{quote(channels[0], safe='')}/stream"
    else:
        path, given = "/api/stream", [("channel", channel) for channel in channels] + given
    return f"{path}?{urlencode(given)}" if given else path


class EventSource:
    """Connects again after each loss as browsers do, with the last event id, to one address after the other.

    :attr:`refused` is the answer at which it has stopped for good, as browsers do at any but a 200.
    """

    def __init__(self, urls: Sequence[str], *channels: str, token: str | None = None, **query: Any) -> None:
        self._urls = itertools.cycle(urls)
        self._channels, self._token, self._query = channels, token, query
        self.events: list[Event] = []
        self.last_id = ""
        self.connections = 0
        #: What the last stream has said, in milliseconds.
        self.retry: int | None = None
        self.refused: RefusedError | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def messages(self) -> list[Any]:
        return [event.json for event in list(self.events) if event.name == "message"]

    def wait(self, condition: Callable[["EventSource"], object]) -> None:
        """Wait until a condition of this client holds."""
        until(lambda: condition(self), f"the condition of {self._channels}; last events: {self.events[-3:]}")

    def wait_messages(self, count: int) -> None:
        self.wait(lambda client: len(client.messages) >= count)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                stream = Stream(
                    next(self._urls),
                    *self._channels,
                    last_id=self.last_id,
                    token=self._token,
                    on_event=self.events.append,
                    **self._query,
                )
            except RefusedError as error:
                self.refused = error
                return
            except (OSError, http.client.HTTPException):
                self._closed.wait(0.05)
                continue
            self.connections += 1
            with stream:
                while not self._closed.is_set() and not stream.ended.wait(0.01):
                    pass
            self.last_id, self.retry = stream.parser.last_id, stream.parser.retry
            self._closed.wait(0.05)  # not `retry`, which would only take time

    def close(self) -> None:
        self._closed.set()
        self._thread.join(PATIENCE)

    def __enter__(self) -> "EventSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
