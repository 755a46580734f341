"""The checker's Python programs, which record what arrives: an AsyncSubscriber, a stream, two durable consumers."""

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import psycopg

from socketio_pg.aio import AsyncSubscriber
from socketio_pg.consumer import Consumer, Message
from socketio_pg.core.errors import SocketIOPGError
from socketio_pg.subscriber.subscriber import Gap
from tests.support.checker import Delivered, Improper, Note, Subscribed, digest
from tests.support.sse import EventSource


class AsyncioProgram:
    """Subscribes to ``channels`` with an AsyncSubscriber, in an event loop of its own thread."""

    def __init__(self, name: str, port: int, channels: Sequence[str], epoch: str) -> None:
        self.name = name
        self.channels = channels
        self.notes: list[Note] = []
        self._url = f"http://127.0.0.1:{port}"
        self._epoch = epoch
        self._positions: dict[str, int] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), name=name)
        self._ending = asyncio.Event()

    def start(self) -> None:
        self._thread.start()

    def caught_up(self, newest: dict[str, int]) -> bool:
        return all(self._positions.get(channel, -1) >= newest.get(channel, 0) for channel in self.channels)

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()
        self._loop.close()

    async def _run(self) -> None:
        options = {"reconnection_delay": 0.1, "reconnection_delay_max": 0.5, "retry_delay": 0.1, "retry_delay_max": 0.5}
        async with AsyncSubscriber(self._url, retry=True, **options) as subscriber:  # type: ignore[arg-type]
            tasks = [asyncio.create_task(self._take(subscriber, channel)) for channel in self.channels]
            await self._ending.wait()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _take(self, subscriber: AsyncSubscriber, channel: str) -> None:
        def on_gap(gap: Gap) -> None:
            if gap["tier"] == "log":
                self.notes.append(Improper(f"got {gap}"))

        try:
            while True:
                with contextlib.suppress(SocketIOPGError, ConnectionError, TimeoutError):
                    since = f"{self._epoch}:0"
                    subscription = await subscriber.subscribe(channel, since=since, on_gap=on_gap)
                    break
                await asyncio.sleep(0.2)
            self.notes.append(Subscribed(channel, 0))
            self._positions[channel] = 0
            async for message in subscription:
                self.notes.append(delivered(message))
                self._positions[channel] = message.get("position", self._positions[channel])
        except Exception as error:
            self.notes.append(Improper(f"{channel} ended with {error!r}"))


class StreamProgram:
    """Follows all ``channels`` in one stream of Server-Sent Events, of one node after the other."""

    def __init__(self, name: str, ports: Sequence[int], channels: Sequence[str], epoch: str) -> None:
        self.name = name
        self.channels = channels
        self._urls = [f"http://127.0.0.1:{port}" for port in ports]
        self._epoch = epoch
        self._source: EventSource | None = None

    def start(self) -> None:
        self._source = EventSource(self._urls, *self.channels, since=f"{self._epoch}:0")

    @property
    def notes(self) -> list[Note]:
        assert self._source is not None
        notes: list[Note] = [Subscribed(channel, 0) for channel in self.channels]
        last = 0
        for event in list(self._source.events):
            body = event.json
            if event.name == "message":
                notes.append(delivered(body))
                if event.id != f"{self._epoch}:{body['position']}" or body["position"] <= last:
                    notes.append(Improper(f"got the id {event.id} with {body['position']} after {last}"))
                last = body["position"]
            elif event.name == "gap" and body["reason"] != "database_connection_lost":
                notes.append(Improper(f"got {body}"))
            elif event.name == "subscribed" and body.get("recovered") is not True:
                notes.append(Improper(f"was not recovered: {body}"))
        if self._source.refused is not None:
            notes.append(Improper(f"was refused: {self._source.refused}"))
        return notes

    def caught_up(self, newest: dict[str, int]) -> bool:
        assert self._source is not None
        if self._source.refused is not None:
            return True
        positions = {found["channel"]: found["position"] for found in self._source.messages}
        return all(positions.get(channel, 0) >= newest.get(channel, 0) for channel in self.channels)

    def end(self) -> None:
        if self._source is not None:
            self._source.close()


class ConsumerPrograms:
    """Two durable consumers of one name, each in a thread, which write a row for each message."""

    _TABLE = """
        CREATE TABLE consumed (
            number bigint GENERATED ALWAYS AS IDENTITY, channel text, position bigint, id text, digest bigint,
            published_at text)
    """
    _INSERT = "INSERT INTO consumed (channel, position, id, digest, published_at) VALUES (%s, %s, %s, %s, %s)"

    def __init__(self, name: str, url: str, channels: Sequence[str]) -> None:
        self.name = name
        self.channels = channels
        self._url = url
        self._problems: list[Note] = []
        with psycopg.connect(url) as connection:
            connection.execute(self._TABLE)
        self._consumers = [
            Consumer(
                lambda: psycopg.connect(url), name, channels=channels, start="earliest", batch=batch, poll=0.2,
                retry_delay=0.1,
            )
            for batch in (1, 20)
        ]  # fmt: skip
        self._threads = [threading.Thread(target=self._run, args=(one,), name=name) for one in self._consumers]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def _run(self, consumer: Consumer) -> None:
        try:
            consumer.run(self._handle)
        except Exception as error:
            self._problems.append(Improper(f"ended with {error!r}"))

    def _handle(self, connection: Any, message: Message) -> None:
        found = delivered(message)
        values = (found.channel, found.position, found.id, found.digest, found.published_at)
        connection.execute(self._INSERT, values)

    @property
    def notes(self) -> list[Note]:
        with psycopg.connect(self._url) as connection:
            rows = connection.execute(
                "SELECT channel, position, id, digest, published_at FROM consumed ORDER BY number"
            ).fetchall()
        subscribed = [Subscribed(channel, 0) for channel in self.channels]
        return [*subscribed, *(Delivered(*row) for row in rows), *self._problems]

    def caught_up(self, newest: dict[str, int]) -> bool:
        if self._problems:
            return True
        with psycopg.connect(self._url) as connection:
            rows = connection.execute("SELECT channel, max(position) FROM consumed GROUP BY channel").fetchall()
        positions: dict[str, int] = dict(rows)
        return all(positions.get(channel, 0) >= newest.get(channel, 0) for channel in self.channels)

    def end(self) -> None:
        for consumer, thread in zip(self._consumers, self._threads, strict=True):
            consumer.stop()
            thread.join()
            consumer.close()


def delivered(message: Any) -> Delivered:
    """Return the note about a message."""
    body = message["payload"]
    at = message.get("published_at")
    return Delivered(message["channel"], message.get("position"), body["id"], digest(body), at, "replayed" in message)
