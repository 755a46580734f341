"""socketio_pg.js under Node and the two Python subscribers with a common interface, and a server behind a proxy."""

import asyncio
import json
import queue
import tempfile
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal, Protocol, TypeVar

import jwt

from socketio_pg.aio import AsyncSubscriber, AsyncSubscription
from socketio_pg.core.errors import SocketIOPGError
from socketio_pg.postgres.database import Database
from socketio_pg.postgres.schema import install
from socketio_pg.subscriber.subscriber import Gap, Message, Subscriber, Subscription
from tests.support.log import Log, wait_installed
from tests.support.node import NodeClient
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster
from tests.support.proxy import Proxy
from tests.support.server import ServerProcess

T = TypeVar("T")


class Refused(Exception):
    """``subscribe`` failed. The message is the error code."""


class Client(Protocol):
    """The common interface. Subscriptions have names; their events are kept until :meth:`next` takes them."""

    def subscribe(self, name: str, channel: str, *, raises: bool = False, **options: Any) -> None:
        """Subscribe and wait for the confirmation. ``raises``: the handler raises after it has recorded the message."""

    def subscribe_all(self, channels: Sequence[str]) -> None:
        """Subscribe to each channel, under its own name."""

    def next(self, kind: str, name: str) -> Any:
        """Return the next ``message`` or ``gap`` of a subscription, with the position as seen in the handler."""

    def unsubscribe(self, name: str) -> None: ...

    def position(self, name: str) -> Any: ...

    def failures(self, count: int) -> list[str]:
        """Return the next ``count`` errors that handlers raised."""

    def ended(self, name: str) -> str:
        """Return the error code with which an established subscription has ended."""

    def wait_disconnected(self) -> None:
        """Wait until the client has noticed the lost connection."""

    def close(self) -> None: ...


#: Results of the function ``token`` in order; the last one is repeated. With "" it raises an error.
Tokens = dict[Literal["connecting", "renewing"], list[str]]


class JavaScript:
    def __init__(self, url: str, tokens: Tokens | None = None, auth: dict[str, Any] | None = None) -> None:
        options = ["none" if tokens is None else json.dumps(tokens), "", json.dumps(auth) if auth else ""]
        self._node = NodeClient(url, "websocket", "replay.mjs", *options)

    def subscribe(self, name: str, channel: str, *, raises: bool = False, **options: Any) -> None:
        self._call(command="subscribe", name=name, channel=channel, options=options, raises=raises)

    def subscribe_all(self, channels: Sequence[str]) -> None:
        self._call(command="subscribeAll", channels=channels)

    def next(self, kind: str, name: str) -> Any:
        line = self._node.next(kind=kind, name=name)
        return line[kind], line["position"]

    def unsubscribe(self, name: str) -> None:
        self._call(command="unsubscribe", name=name)

    def position(self, name: str) -> Any:
        return self._call(command="position", name=name)

    def failures(self, count: int) -> list[str]:
        return [self._node.next(kind="uncaught")["text"] for _ in range(count)]

    def wait_disconnected(self) -> None:
        self._node.next(kind="disconnect")

    def wait(self, kind: str, **values: Any) -> Any:
        """Return the next line of a kind, with these values, that was not taken yet."""
        return self._node.next(kind=kind, **values)

    def pending(self, *kinds: str) -> list[Any]:
        """Return the lines of these kinds that have arrived and were not taken, in order. A call reads up to now."""
        self._call(command="timers")
        return [line for line in self._node.lines if line["kind"] in kinds]

    def wait_error(self, name: str) -> Any:
        """Return the next error passed to ``onError``."""
        return self._node.next(kind="error", name=name)

    def ended(self, name: str) -> str:
        return str(self._node.next(kind="error", name=name, retrying=False)["code"])

    def wait_renewed(self, client: str) -> None:
        """Wait until the server has accepted a new token of ``client``."""
        self._node.next(kind="authenticated", client=client)

    def wait_line(self, kind: str) -> Any:
        return self._node.next(kind=kind)

    def call(self, command: str, **values: Any) -> Any:
        return self._call(command=command, **values)

    def emit(self, event: str, **argument: Any) -> Any:
        """Send a request directly on the socket, bypassing socketio_pg.js."""
        return self._call(command="emit", event=event, argument=argument)

    def close(self) -> None:
        self._node.close()

    def _call(self, **command: Any) -> Any:
        self._node.send(command)
        done = self._node.next(kind="done")
        if "error" in done:
            raise Refused(done["error"])
        return done["value"]


class Python:
    def __init__(self, url: str, tokens: Tokens | None = None) -> None:
        self._tokens = tokens
        self._subscriber = Subscriber(
            url, reconnection_delay=0.1, reconnection_delay_max=0.5, retry_delay=0.1, retry_delay_max=0.5, retry=True,
            token=None if tokens is None else self._token,
            on_direct=lambda message: self._queue("direct", "").put(message),
        )  # fmt: skip
        self._queues: dict[tuple[str, str], queue.Queue[Any]] = {}
        self._made: dict[str, Subscription] = {}
        self._raised: queue.Queue[str] = queue.Queue()

    def subscribe(self, name: str, channel: str, *, raises: bool = False, **options: Any) -> None:
        def handle(message: Message) -> None:
            # The handler may be called before subscribe() has returned.
            position = self._made[name].position if name in self._made else None
            self._queue("message", name).put((dict(message), position))
            if raises:
                self._raised.put("the handler's own")
                raise ValueError("the handler's own")

        def on_gap(gap: Gap) -> None:
            self._queue("gap", name).put((dict(gap), self._made[name].position if name in self._made else None))

        def on_error(error: SocketIOPGError) -> None:
            self._queue("error", name).put(error.code)

        try:
            self._made[name] = self._subscriber.subscribe(channel, handle, on_gap=on_gap, on_error=on_error, **options)
        except SocketIOPGError as error:
            raise Refused(error.code) from error

    def subscribe_all(self, channels: Sequence[str]) -> None:
        for channel in channels:
            self.subscribe(channel, channel)

    def next(self, kind: str, name: str) -> Any:
        return self._queue(kind, name).get(timeout=PATIENCE)

    def unsubscribe(self, name: str) -> None:
        self._subscriber.unsubscribe(self._made[name])

    def position(self, name: str) -> Any:
        return self._made[name].position

    def failures(self, count: int) -> list[str]:
        return [self._raised.get(timeout=PATIENCE) for _ in range(count)]

    def ended(self, name: str) -> str:
        return str(self._queue("error", name).get(timeout=PATIENCE))

    def wait_renewed(self, client: str) -> None:
        """Wait until the server has accepted a new token of ``client``."""
        login = self._subscriber._link.login
        assert login is not None

        def renewed() -> bool:
            claims = jwt.decode(login.sent or "", options={"verify_signature": False}) if login.sent else {}
            return claims.get("sub") == client

        with self._subscriber._link.changed:
            assert self._subscriber._link.changed.wait_for(renewed, PATIENCE)

    def _token(self) -> str:
        assert self._tokens is not None
        left = self._tokens["renewing" if self._subscriber.connected else "connecting"]
        token = left.pop(0) if len(left) > 1 else left[0]
        if not token:
            raise LookupError("not signed in")
        return token

    def wait_disconnected(self) -> None:
        with self._subscriber._link.changed:
            assert self._subscriber._link.changed.wait_for(lambda: not self._subscriber.connected, PATIENCE)

    def close(self) -> None:
        self._subscriber.close()

    def _queue(self, kind: str, name: str) -> "queue.Queue[Any]":
        return self._queues.setdefault((kind, name), queue.Queue())


class Asyncio:
    """AsyncSubscriber in an event loop of its own thread, with a task for each subscription."""

    def __init__(self, url: str, tokens: Tokens | None = None) -> None:
        self._tokens = tokens
        self._queues: dict[tuple[str, str], queue.Queue[Any]] = {}
        self._made: dict[str, AsyncSubscription] = {}
        self._raised: queue.Queue[str] = queue.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._subscriber = AsyncSubscriber(
            url, reconnection_delay=0.1, reconnection_delay_max=0.5, retry_delay=0.1, retry_delay_max=0.5, retry=True,
            token=None if tokens is None else self._token,
            on_direct=lambda message: self._queue("direct", "").put(message),
        )  # fmt: skip
        self._call(self._subscriber.__aenter__())

    def subscribe(self, name: str, channel: str, *, raises: bool = False, **options: Any) -> None:
        async def on_gap(gap: Gap) -> None:
            await asyncio.sleep(0)
            self._queue("gap", name).put((dict(gap), self._made[name].position if name in self._made else None))

        async def subscribe() -> None:
            self._made[name] = await self._subscriber.subscribe(channel, on_gap=on_gap, **options)
            task = asyncio.create_task(self._take(name, self._made[name], raises))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        try:
            self._call(subscribe())
        except SocketIOPGError as error:
            raise Refused(error.code) from error

    async def _take(self, name: str, subscription: AsyncSubscription, raises: bool) -> None:
        try:
            async for message in subscription:
                self._queue("message", name).put((dict(message), subscription.position))
                if raises:  # it may go on after a failure of its own
                    self._raised.put("the handler's own")
        except SocketIOPGError as error:
            self._queue("error", name).put(error.code)

    def subscribe_all(self, channels: Sequence[str]) -> None:
        for channel in channels:
            self.subscribe(channel, channel)

    def next(self, kind: str, name: str) -> Any:
        return self._queue(kind, name).get(timeout=PATIENCE)

    def unsubscribe(self, name: str) -> None:
        self._call(self._subscriber.unsubscribe(self._made[name]))

    def position(self, name: str) -> Any:
        return self._made[name].position

    def failures(self, count: int) -> list[str]:
        return [self._raised.get(timeout=PATIENCE) for _ in range(count)]

    def ended(self, name: str) -> str:
        return str(self._queue("error", name).get(timeout=PATIENCE))

    def wait_renewed(self, client: str) -> None:
        """Wait until the server has accepted a new token of ``client``."""
        link = self._subscriber._link

        def renewed() -> bool:
            sent = "" if link.login is None else link.login.sent
            return bool(sent) and jwt.decode(sent or "", options={"verify_signature": False}).get("sub") == client

        assert self._call(link.changed.wait_for(renewed, PATIENCE))

    async def _token(self) -> str:
        await asyncio.sleep(0)
        assert self._tokens is not None
        left = self._tokens["renewing" if self._subscriber.connected else "connecting"]
        token = left.pop(0) if len(left) > 1 else left[0]
        if not token:
            raise LookupError("not signed in")
        return token

    def wait_disconnected(self) -> None:
        assert self._call(self._subscriber._link.changed.wait_for(lambda: not self._subscriber.connected, PATIENCE))

    def close(self) -> None:
        async def close() -> set[str]:
            await self._subscriber.close()
            await asyncio.gather(*self._tasks)
            return {str(task) for task in asyncio.all_tasks() - {asyncio.current_task()}}

        left = self._call(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        assert not left, "tasks were left running"

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(2 * PATIENCE)

    def _queue(self, kind: str, name: str) -> "queue.Queue[Any]":
        return self._queues.setdefault((kind, name), queue.Queue())


CLIENTS: dict[str, Callable[[str], Client]] = {"javascript": JavaScript, "python": Python, "asyncio": Asyncio}


class ProxiedLog(Log):
    """A server on a separate database, behind :attr:`proxy`."""

    def __init__(self, cluster: Cluster, name: str, **settings: str) -> None:
        cluster.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        cluster.sql(f"CREATE DATABASE {name}")
        self.cluster, self.url = cluster, cluster.url(name)
        self._folder = tempfile.TemporaryDirectory()
        path = f"{self._folder.name}/http"
        self.server = ServerProcess(self.url, "--bind", f"unix:{path}", DRAIN_SECONDS="0.2", **settings)
        self.proxy = Proxy(path)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}"

    def install(self) -> None:
        install(Database(self.url), 1_000_000)
        wait_installed(self)

    def notify(self, channel: str, payload: object) -> None:
        self.sql("SELECT pg_notify(%s, %s)", channel, json.dumps(payload))

    def close(self) -> None:
        self.proxy.close()
        self.server.close()
        self._folder.cleanup()


def numbers(client: Client, name: str, count: int) -> list[int]:
    """Return the numbers in the next ``count`` messages published with :meth:`Log.publish`."""
    return [client.next("message", name)[0]["payload"][0] for _ in range(count)]
