"""The base class of all client managers that carry Flask-SocketIO's emits between processes.

It uses the message format of python-socketio's `PubSubManager` and adds missing features: binary data in callbacks, a
bound on pending callbacks, further kinds of messages. A second base class carries the messages.
"""

import base64
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import socketio
from socketio.packet import Packet

#: A decoded message of the queue.
Command = dict[str, Any]


class QueueManager(socketio.PubSubManager):  # type: ignore[misc]
    """A client manager of python-socketio; another base class provides the queue."""

    #: Callbacks that wait for clients of other nodes. Beyond it the oldest is dropped, because this node is not
    #: notified when such a client disconnects.
    max_callbacks = 10_000

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._remote: dict[tuple[Any, int], None] = {}
        self._remote_ids = itertools.count(1)
        self._receivers: dict[str, list[Callable[[Command], None]]] = {}

    def emit(
        self,
        event: str,
        data: Any,
        namespace: str | None = None,
        room: Any = None,
        skip_sid: Any = None,
        callback: Any = None,
        to: Any = None,
        **options: Any,
    ) -> None:
        """Emit as the stock manager does, but to a single client of this node without the queue.

        Raises as publishing on the queue does; clients of this node have received the event then.
        """
        room, namespace = to or room, namespace or "/"
        if self._is_here(room, namespace):
            options["ignore_queue"] = True
        super().emit(event, data, namespace=namespace, room=room, skip_sid=skip_sid, callback=callback, **options)

    def tell(self, command: Command) -> None:
        """Send a message to the receivers of all nodes, including this one; see :meth:`receive`."""
        self._publish(command)

    def receive(self, method: str, receiver: Callable[[Command], None]) -> None:
        """Call ``receiver`` with each message of this ``method``, in the queue's green thread."""
        self._receivers.setdefault(method, []).append(receiver)

    def _is_here(self, sid: Any, namespace: str) -> bool:
        """Return whether ``sid`` is a client of this node; no other client is in the room of that name."""
        return isinstance(sid, str) and bool(self.is_connected(sid, namespace) or self.is_pre_connected(sid, namespace))

    # -- callbacks -----------------------------------------------------------------------------------------------------

    def _generate_ack_id(self, sid: Any, callback: Any) -> int:
        # True for a client of this node, even while it disconnects.
        if any(sid in rooms.get(None, ()) for rooms in self.rooms.values()):
            return super()._generate_ack_id(sid, callback)  # type: ignore[no-any-return]
        # One counter for all remote clients: ids stay unique when a client's entry is removed with its last callback.
        id = next(self._remote_ids)
        self.callbacks.setdefault(sid, {0: self._remote_ids})[id] = callback
        self._remote[sid, id] = None
        if len(self._remote) > self.max_callbacks:
            self._forget(*next(iter(self._remote)))
        return id

    def trigger_callback(self, sid: Any, id: int, data: Sequence[Any]) -> None:
        if (sid, id) not in self._remote:
            super().trigger_callback(sid, id, data)
            return
        callback = self.callbacks.get(sid, {}).get(id)
        self._forget(sid, id)
        if callback is not None:
            callback(*data)

    def _forget(self, sid: Any, id: int) -> None:
        del self._remote[sid, id]
        of_sid = self.callbacks.get(sid, {})
        of_sid.pop(id, None)
        if of_sid.keys() <= {0}:
            self.callbacks.pop(sid, None)

    def _return_callback(self, host_id: str, sid: Any, namespace: str, callback_id: int, *args: Any) -> None:
        # Replaces the stock method, which does not support binary data.
        if host_id == self.host_id:
            self.trigger_callback(sid, callback_id, args)
            return
        answer: Command = {"method": "callback", "host_id": host_id, "sid": sid, "namespace": namespace}
        data, attachments = Packet.deconstruct_binary(list(args))
        if attachments:
            answer["attachments"] = [base64.b64encode(one).decode() for one in attachments]
        self._publish(answer | {"id": callback_id, "args": data})

    def _handle_callback(self, message: Command) -> None:
        attachments = message.get("attachments")
        if attachments:
            args = Packet.reconstruct_binary(message["args"], [base64.b64decode(one) for one in attachments])
            message = message | {"args": args}
        known = (message.get("sid"), message.get("id")) in self._remote
        if known and message.get("host_id") == self.host_id:
            # Application code, which may wait: it must not delay the following messages.
            self.server.start_background_task(super()._handle_callback, message)

    # -- messages from the queue ---------------------------------------------------------------------------------------

    def _handle_disconnect(self, message: Command) -> None:
        if self._is_here(message.get("sid"), message.get("namespace") or "/"):
            # Runs the application's disconnect handler, which may wait.
            self.server.start_background_task(super()._handle_disconnect, message)

    def _open(self, text: str | bytes | None) -> str | None:
        """Return a message of the queue that another process has sealed; None if it is not one."""
        raise NotImplementedError

    def _listen(self) -> Iterator[Any]:
        for sealed in super()._listen():
            text = self._open(sealed)
            if text is None:
                continue
            command = _decode(text)
            if command is None:
                self._get_logger().warning("ignored an invalid message on the queue")
                continue
            if command["method"] not in self._receivers:
                yield command
            for receive in self._receivers.get(command["method"], ()):
                try:
                    receive(command)
                except Exception:  # a bug in the receiver or an invalid message: the following messages must arrive
                    self._get_logger().exception("handling a message from the queue failed")


def _decode(text: str) -> Command | None:
    try:
        command = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return command if isinstance(command, dict) and isinstance(command.get("method"), str) else None
