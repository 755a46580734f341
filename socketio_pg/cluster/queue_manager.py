"""What our client managers have in common that carry Flask-SocketIO's own emits between processes.

They speak as python-socketio's `PubSubManager` does, and do what it leaves out. What carries the messages is a base
class next to :class:`QueueManager`.
"""

import base64
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import socketio
from socketio.packet import Packet

#: A message of the queue, without its bytes.
Command = dict[str, Any]


class QueueManager(socketio.PubSubManager):  # type: ignore[misc]
    """A client manager of python-socketio on a queue that another base class brings."""

    #: Callbacks that wait for clients of other nodes. Past it the oldest is given up: nobody says when such a client
    #: has gone.
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
        """As the stock manager's; what is for one client of this node does not go by the queue.

        Clients of this node have got it when it raises what publishing on the queue raises.
        """
        room, namespace = to or room, namespace or "/"
        if self._is_here(room, namespace):
            options["ignore_queue"] = True
        super().emit(event, data, namespace=namespace, room=room, skip_sid=skip_sid, callback=callback, **options)

    def tell(self, command: Command) -> None:
        """Send a message to the receivers of all nodes, this one included; see :meth:`receive`."""
        self._publish(command)

    def receive(self, method: str, receiver: Callable[[Command], None]) -> None:
        """Call ``receiver`` with each message whose ``method`` is this, in the queue's green thread."""
        self._receivers.setdefault(method, []).append(receiver)

    def _is_here(self, sid: Any, namespace: str) -> bool:
        """Whether it is a client of this node: the room of its own has nobody else."""
        return isinstance(sid, str) and bool(self.is_connected(sid, namespace) or self.is_pre_connected(sid, namespace))

    # -- callbacks -----------------------------------------------------------------------------------------------------

    def _generate_ack_id(self, sid: Any, callback: Any) -> int:
        # Also while it leaves.
        if any(sid in rooms.get(None, ()) for rooms in self.rooms.values()):
            return super()._generate_ack_id(sid, callback)  # type: ignore[no-any-return]
        # Numbers of their own, none twice: what is kept of the client can be forgotten with the last callback.
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
        # As the stock manager's, which cannot carry binary data.
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
            # An application's code, which may wait, and others must not wait for it.
            self.server.start_background_task(super()._handle_callback, message)

    # -- what others send ----------------------------------------------------------------------------------------------

    def _handle_disconnect(self, message: Command) -> None:
        if self._is_here(message.get("sid"), message.get("namespace") or "/"):
            # Runs the application's disconnect handler: as above.
            self.server.start_background_task(super()._handle_disconnect, message)

    def _listen(self) -> Iterator[Any]:
        for text in super()._listen():
            command = _decode(text)
            if command is None:
                self._get_logger().warning("something that is no message of ours is on the queue")
                continue
            if command["method"] not in self._receivers:
                yield command
            for receive in self._receivers.get(command["method"], ()):
                try:
                    receive(command)
                except Exception:  # a bug of theirs, or nonsense: what follows is everybody's
                    self._get_logger().exception("a message of the queue could not be handled")


def _decode(text: str | bytes) -> Command | None:
    try:
        command = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return command if isinstance(command, dict) and isinstance(command.get("method"), str) else None
