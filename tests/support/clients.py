"""python-socketio's own client for the tests. Many at once, over raw WebSockets, are in `swarm`."""

import contextlib
import queue
from collections.abc import Callable
from typing import Any

import engineio
import socketio
import websocket

from tests.support.patience import PATIENCE


class _InOrder(engineio.Client):  # type: ignore[misc]
    """Handles packets one after the other: python-engineio's client starts a thread for each, and they overtake."""

    def _trigger_event(self, event: str, *arguments: Any, **options: Any) -> Any:
        return super()._trigger_event(event, *arguments, **options | {"run_async": False})

    def _write_loop(self) -> None:
        # It may send its good-bye on a socket that is being closed, which websocket-client calls a time-out, and does
        # not expect that. What is not sent while it matters is missed by the test.
        with contextlib.suppress(websocket.WebSocketTimeoutException):
            super()._write_loop()


class _InOrderClient(socketio.Client):  # type: ignore[misc]
    def _engineio_client_class(self) -> type[engineio.Client]:
        return _InOrder


class SocketClient:
    """python-socketio's own client, whose events can be waited for, in the order in which they came.

    ``wait``: try until the server is there.
    """

    EVENTS: tuple[str, ...] = (
        "server_hello",
        "subscribed",
        "unsubscribed",
        "published",
        "event",
        "gap",
        "error",
        "disconnect",
        "connect",
        "connect_error",
        "authenticated",
        "token_expiring",
    )

    def __init__(
        self,
        url: str,
        transports: tuple[str, ...] = ("websocket",),
        wait: bool = False,
        auth: Any = None,
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        self._events: dict[str, queue.Queue[Any]] = {name: queue.Queue() for name in self.EVENTS}
        options = {"reconnection_delay": 0.1, "reconnection_delay_max": 0.5} | options
        self.io = _InOrderClient(**options)
        for name in self.EVENTS:
            self.io.on(name, self._recorder(name))
        self.io.connect(
            url, transports=list(transports), wait_timeout=PATIENCE, retry=wait, auth=auth, headers=headers or {}
        )

    def next(self, event: str, seconds: float = PATIENCE) -> Any:
        """The argument of the next ``event``, in the order of their arrival."""
        try:
            return self._events[event].get(timeout=seconds)
        except queue.Empty:
            raise AssertionError(f"no event {event!r} within {seconds} s") from None

    def pending(self, event: str) -> int:
        """How many of ``event`` have arrived and were not taken by :meth:`next`."""
        return self._events[event].qsize()

    def call(self, event: str, argument: Any = None, seconds: float = PATIENCE) -> Any:
        """Send ``event``; returns its acknowledgement."""
        return self.io.call(event, argument, timeout=seconds)

    def subscribe(self, channel: str) -> None:
        answer = self.call("subscribe", {"channel": channel})
        assert answer == {"ok": True, "channel": channel}

    def close(self) -> None:
        """Leave, and wait until none of the client's threads runs any more.

        Its own `shutdown()` misses a connection that is being lost at the same time: it would go on coming back.
        """
        self.io.reconnection = False
        reading = self.io.eio.read_loop_task
        self._let_posts_end()
        if self.io.eio.state == "connected":
            self.io.disconnect()
        if reading is not None:
            reading.join(PATIENCE)
        coming_back = self.io._reconnect_task
        while coming_back is not None and coming_back.is_alive():
            if self.io._reconnect_abort is not None:
                self.io._reconnect_abort.set()  # the thread clears it when it starts: so again and again
            coming_back.join(0.05)
        if self.io.connected:
            self.io.disconnect()

    def _let_posts_end(self) -> None:
        """python-engineio's client forgets to say good-bye while a POST is under way, and its last poll then waits."""
        if self.io.eio.current_transport == "polling" and self.io.eio.state == "connected":
            sending = self.io.eio.queue
            with sending.all_tasks_done:
                sending.all_tasks_done.wait_for(lambda: not sending.unfinished_tasks, timeout=5)

    def __enter__(self) -> "SocketClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _recorder(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self._events[name].put(arguments[0] if arguments else None)


def code(answer: dict[str, Any]) -> str | None:
    """The code of an acknowledgement's error, None when all is well."""
    assert answer["ok"] is ("error" not in answer)
    found: str | None = answer["error"]["code"] if "error" in answer else None
    return found


def refused(url: str, **options: Any) -> Any:
    """What a client is told that the server does not let in; ``options`` as of :class:`SocketClient`."""
    told: queue.Queue[Any] = queue.Queue()

    class Client(SocketClient):
        def _recorder(self, name: str) -> Callable[..., None]:
            return told.put if name == "connect_error" else super()._recorder(name)

    try:
        Client(url, reconnection=False, **options).close()
    except socketio.exceptions.ConnectionError:
        return told.get(timeout=PATIENCE)
    raise AssertionError("the client was let in")
