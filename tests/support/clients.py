"""Test clients based on python-socketio's client. `swarm` has many clients on raw WebSockets."""

import contextlib
import logging
import queue
from collections.abc import Callable, Sequence
from typing import Any

import engineio
import socketio
import websocket

from tests.support.patience import PATIENCE


class _EndLast(queue.Queue[Any]):
    """A queue of packets in which None, its end, is only taken alone.

    The client's thread that writes forgets an end that it takes together with packets, and then waits for the time of a
    ping.
    """

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if not block:
            with self.mutex:
                if self.queue and self.queue[0] is None:
                    raise queue.Empty
        return super().get(block, timeout)

    def get_nowait(self) -> Any:
        """Return what is next, the end too: a client empties its queue with this before it connects again."""
        return super().get(block=False)


class _InOrder(engineio.Client):  # type: ignore[misc]
    """Handles packets in order: python-engineio's client starts a thread for each, which breaks the order.

    It also waits for late pings. The stock client gives up silently when a ping is 5 s late, as behind megabytes of
    messages on a busy machine.
    """

    _ping_timeout: float | None = None

    @property
    def ping_timeout(self) -> float | None:
        return None if self._ping_timeout is None else self._ping_timeout + PATIENCE

    @ping_timeout.setter
    def ping_timeout(self, seconds: float | None) -> None:
        self._ping_timeout = seconds

    def _trigger_event(self, event: str, *arguments: Any, **options: Any) -> Any:
        return super()._trigger_event(event, *arguments, **options | {"run_async": False})

    def disconnect(self, abort: bool = False, reason: str | None = None) -> None:
        # At its end it waits for the thread that reads, which this may be: after a DISCONNECT of the server.
        with contextlib.suppress(RuntimeError):
            super().disconnect(abort, reason)

    def create_queue(self, *arguments: Any, **options: Any) -> "_EndLast":
        return _EndLast(*arguments, **options)

    def _write_loop(self) -> None:
        # It may send its CLOSE packet on a closing socket, and does not expect the resulting timeout error of
        # websocket-client. A test would notice if other data were not sent.
        with contextlib.suppress(websocket.WebSocketTimeoutException):
            super()._write_loop()


class _InOrderClient(socketio.Client):  # type: ignore[misc]
    def _engineio_client_class(self) -> type[engineio.Client]:
        return _InOrder

    def disconnect(self) -> None:
        for namespace in list(self.namespaces):  # a copy, because the thread that reads may remove one
            self._send_packet(self.packet_class(socketio.packet.DISCONNECT, namespace=namespace))
        self.eio.disconnect()


class SocketClient:
    """python-socketio's client, whose events can be awaited in the order of their arrival.

    ``wait``: retry until the server is reachable.
    """

    NAMESPACE = "/"
    EVENTS: tuple[str, ...] = (
        "server_hello",
        "subscribed",
        "unsubscribed",
        "published",
        "event",
        "events",
        "gap",
        "live",
        "error",
        "disconnect",
        "connect",
        "connect_error",
        "authenticated",
        "token_expiring",
        "health",
        "direct",
    )

    def __init__(
        self,
        url: str,
        transports: tuple[str, ...] = ("websocket",),
        wait: bool = False,
        auth: Any = None,
        headers: dict[str, str] | None = None,
        socketio_path: str = "socket.io",
        **options: Any,
    ) -> None:
        self._events: dict[str, queue.Queue[Any]] = {name: queue.Queue() for name in self.EVENTS}
        # The stock client gives up when the server takes over 5 s to accept it.
        options = {"reconnection_delay": 0.1, "reconnection_delay_max": 0.5, "request_timeout": PATIENCE} | options
        options = {"engineio_logger": logging.getLogger("tests.client")} | options  # pytest shows its warnings
        self._options = options
        self._to = {"auth": auth, "headers": headers or {}, "socketio_path": socketio_path}
        self._to |= {"url": url, "transports": list(transports), "namespaces": [self.NAMESPACE]}
        self._open(retry=wait)

    def _open(self, retry: bool = False) -> None:
        """Connect with a new stock client: threads of an earlier one that end late would break this connection."""
        self.io = _InOrderClient(**self._options)
        for name in self.EVENTS:
            self.io.on(name, self._recorder(name), namespace=self.NAMESPACE)
        self.io.connect(wait_timeout=PATIENCE, retry=retry, **self._to)

    def next(self, event: str, seconds: float = PATIENCE) -> Any:
        """Return the argument of the next ``event``, in the order of arrival."""
        try:
            return self._events[event].get(timeout=seconds)
        except queue.Empty:
            raise AssertionError(f"no event {event!r} within {seconds} s") from None

    def pending(self, event: str) -> int:
        """Return how many of ``event`` have arrived and were not taken with :meth:`next`."""
        return self._events[event].qsize()

    def call(self, event: str, argument: Any = None, seconds: float = PATIENCE) -> Any:
        """Send ``event``. Return its acknowledgement."""
        return self.io.call(event, argument, namespace=self.NAMESPACE, timeout=seconds)

    def call_together(self, event: str, arguments: Sequence[Any]) -> list[Any]:
        """Send ``event`` with each argument, without waiting in between. Return the acknowledgements as they came.

        A rate is exceeded that way on slow machines, too.
        """
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for argument in arguments:
            self.io.emit(event, argument, namespace=self.NAMESPACE, callback=answers.put)
        return [answers.get(timeout=PATIENCE) for _ in arguments]

    def subscribe(self, channel: str) -> None:
        answer = self.call("subscribe", {"channel": channel})
        assert answer == {"ok": True, "channel": channel}

    def close(self) -> None:
        """Disconnect, and wait until all the client's threads have ended.

        The client's own `shutdown()` misses a connection that is lost at the same time, and would keep reconnecting.
        """
        self.io.reconnection = False
        self._end_reconnecting()
        reading = self.io.eio.read_loop_task
        self._let_posts_end()
        if self.io.eio.state == "connected":
            self.io.disconnect()
        if reading is not None:
            reading.join(PATIENCE)
        self._end_reconnecting()
        if self.io.connected:
            self.io.disconnect()

    def _end_reconnecting(self) -> None:
        """Wait until the client has connected again, or has given that up."""
        reconnecting = self.io._reconnect_task
        while reconnecting is not None and reconnecting.is_alive():
            if self.io._reconnect_abort is not None:
                self.io._reconnect_abort.set()  # the thread clears it when it starts, so set it repeatedly
            reconnecting.join(0.05)

    def _let_posts_end(self) -> None:
        """Wait for pending POSTs: during one, python-engineio's client sends no CLOSE, and its last poll then hangs."""
        if self.io.eio.current_transport == "polling" and self.io.eio.state == "connected":
            sending = self.io.eio.queue
            with sending.all_tasks_done:
                sending.all_tasks_done.wait_for(lambda: not sending.unfinished_tasks, timeout=PATIENCE)

    def __enter__(self) -> "SocketClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _recorder(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self._events[name].put(arguments[0] if arguments else None)


def code(answer: dict[str, Any]) -> str | None:
    """Return the error code of an acknowledgement, None if it succeeded."""
    assert answer["ok"] is ("error" not in answer)
    found: str | None = answer["error"]["code"] if "error" in answer else None
    return found


def refused(url: str, **options: Any) -> Any:
    """Connect, expecting a refusal. Return the error data. ``options`` are those of :class:`SocketClient`."""
    errors: queue.Queue[Any] = queue.Queue()

    class Client(SocketClient):
        def _recorder(self, name: str) -> Callable[..., None]:
            return errors.put if name == "connect_error" else super()._recorder(name)

    try:
        Client(url, reconnection=False, **options).close()
    except socketio.exceptions.ConnectionError:
        return errors.get(timeout=PATIENCE)
    raise AssertionError("the client was connected")
