"""Clients of `replay_clients` that also watch who is present, and send ephemeral messages."""

import asyncio
import functools
import threading
import time
from typing import Any, Protocol

import jwt

from socketio_pg.aio.presence import AsyncPresence
from socketio_pg.core.errors import SocketIOPGError
from socketio_pg.subscriber.deliveries import Delivery
from socketio_pg.subscriber.presence import Presence
from tests.support.patience import PATIENCE
from tests.support.replay_clients import Asyncio, Client, JavaScript, Python, Refused, Tokens

SECRET = "a secret of the tests, 32 bytes and more"


def tokens(sub: str) -> Tokens:
    """Return a token of a person, with which all clients of this person connect."""
    token = jwt.encode({"sub": sub, "exp": int(time.time()) + 3600}, SECRET, algorithm="HS256")
    return {"connecting": [token], "renewing": [token]}


class Person(Client, Protocol):
    def subscribe_pattern(self, name: str, pattern: str, **options: Any) -> None: ...

    def publish(self, channel: str, payload: object, **options: Any) -> None: ...

    def send(self, channel: str, payload: object, **options: Any) -> bool:
        """Send an ephemeral message. Return whether it was sent."""

    def ephemeral(self, name: str) -> Any:
        """Return the next ephemeral message of a subscription."""

    def max_rate(self, name: str) -> float | None: ...

    def direct(self) -> Any:
        """Return the next message that was sent to this user."""

    def stopped(self, name: str) -> str:
        """Wait until the server has ended the connection for good. Return the code. ``name``: of a subscription."""

    def watch(self, name: str, channel: str) -> None:
        """Watch the presence of a channel. Raises :class:`Refused`."""

    def call_presence(self, name: str, method: str, *values: Any, key: str | None = None) -> None:
        """Call ``join``, ``update``, ``leave`` or ``close``. Raises :class:`Refused`."""

    def members(self, name: str) -> dict[str, Any]:
        """Return the members by key."""

    def count(self, name: str) -> int: ...

    def own_key(self, name: str) -> str | None: ...

    def change(self, name: str) -> tuple[str, str]:
        """Return the next change of presence: ``join``, ``update`` or ``leave``, and the key."""

    def changes(self, name: str) -> list[tuple[str, str]]:
        """Return the changes so far that were not taken."""


class JavaScriptPerson(JavaScript):
    def subscribe_pattern(self, name: str, pattern: str, **options: Any) -> None:
        self.call("subscribe", name=name, channel={"pattern": pattern}, options=options)

    def publish(self, channel: str, payload: object, **options: Any) -> None:
        self.call("publish", number=0, channel=channel, payload=payload, options=options)
        assert "error" not in (line := self.wait("published", number=0)), line

    def send(self, channel: str, payload: object, **options: Any) -> bool:
        sent: bool = self.call("ephemeral", channel=channel, payload=payload, options=options)
        return sent

    def ephemeral(self, name: str) -> Any:
        return self.wait("ephemeral", name=name)["message"]

    def max_rate(self, name: str) -> float | None:
        rate: float | None = self.call("maxRate", name=name)
        return rate

    def direct(self) -> Any:
        return self.wait("direct")["message"]

    def stopped(self, name: str) -> str:
        return str(self.wait("ended")["code"])

    def watch(self, name: str, channel: str) -> None:
        self.call("watch", name=name, channel=channel)

    def call_presence(self, name: str, method: str, *values: Any, key: str | None = None) -> None:
        self.call("presence", name=name, method=method, values=[*values, *([] if key is None else [{"key": key}])])

    def members(self, name: str) -> dict[str, Any]:
        return dict(self.call("members", name=name)["members"])

    def count(self, name: str) -> int:
        count: int = self.call("members", name=name)["count"]
        return count

    def own_key(self, name: str) -> str | None:
        key: str | None = self.call("members", name=name)["key"]
        return key

    def change(self, name: str) -> tuple[str, str]:
        line = self.wait("change", name=name)
        return line["change"], line["key"]

    def changes(self, name: str) -> list[tuple[str, str]]:
        lines = [line for line in self.pending("change") if line["name"] == name]
        return [(line["change"], line["key"]) for line in lines]


class PythonPerson(Python):
    def subscribe(self, name: str, channel: str, *, raises: bool = False, **options: Any) -> None:
        super().subscribe(name, channel, raises=raises, on_ephemeral=self._queue("ephemeral", name).put, **options)

    def subscribe_pattern(self, name: str, pattern: str, **options: Any) -> None:
        def handle(message: Any) -> None:
            self._queue("message", name).put((dict(message), None))

        try:
            self._made[name] = self._subscriber.subscribe_pattern(pattern, handle, **options)
        except SocketIOPGError as error:
            raise Refused(error.code) from error

    def publish(self, channel: str, payload: object, **options: Any) -> None:
        self._subscriber.publish(channel, payload, **options)

    def send(self, channel: str, payload: object, **options: Any) -> bool:
        return self._subscriber.publish_ephemeral(channel, payload, **options)

    def ephemeral(self, name: str) -> Any:
        return self.next("ephemeral", name)

    def max_rate(self, name: str) -> float | None:
        return self._made[name].max_rate

    def direct(self) -> Any:
        return self.next("direct", "")

    def stopped(self, name: str) -> str:
        return self.ended(name)

    @functools.cached_property
    def _presences(self) -> dict[str, Presence]:
        return {}

    def watch(self, name: str, channel: str) -> None:
        try:
            self._presences[name] = self._subscriber.presence(channel, **handlers(self._queue("change", name).put))
        except SocketIOPGError as error:
            raise Refused(error.code) from error

    def call_presence(self, name: str, method: str, *values: Any, key: str | None = None) -> None:
        try:
            getattr(self._presences[name], method)(*values, **({} if key is None else {"key": key}))
        except SocketIOPGError as error:
            raise Refused(error.code) from error

    def members(self, name: str) -> dict[str, Any]:
        return dict(self._presences[name].members)

    def count(self, name: str) -> int:
        return self._presences[name].count

    def own_key(self, name: str) -> str | None:
        return self._presences[name].key

    def change(self, name: str) -> tuple[str, str]:
        change: tuple[str, str] = self.next("change", name)
        return change

    def changes(self, name: str) -> list[tuple[str, str]]:
        done = threading.Event()
        with self._subscriber._link.lock:  # handlers are called in order
            self._subscriber._link.deliver(Delivery(None, lambda _: done.set(), None))
        assert done.wait(PATIENCE)
        return list(self._queue("change", name).queue)


class AsyncioPerson(Asyncio):
    def subscribe(self, name: str, channel: str, *, raises: bool = False, **options: Any) -> None:
        super().subscribe(name, channel, raises=raises, on_ephemeral=self._queue("ephemeral", name).put, **options)

    def subscribe_pattern(self, name: str, pattern: str, **options: Any) -> None:
        async def subscribe() -> None:
            self._made[name] = await self._subscriber.subscribe_pattern(pattern, **options)
            task = asyncio.create_task(self._take(name, self._made[name], False))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        try:
            self._call(subscribe())
        except SocketIOPGError as error:
            raise Refused(error.code) from error

    def publish(self, channel: str, payload: object, **options: Any) -> None:
        self._call(self._subscriber.publish(channel, payload, **options))

    def send(self, channel: str, payload: object, **options: Any) -> bool:
        async def send() -> bool:
            return self._subscriber.publish_ephemeral(channel, payload, **options)

        return self._call(send())

    def ephemeral(self, name: str) -> Any:
        return self.next("ephemeral", name)

    def max_rate(self, name: str) -> float | None:
        return self._made[name].max_rate

    def direct(self) -> Any:
        return self.next("direct", "")

    def stopped(self, name: str) -> str:
        return self.ended(name)

    @functools.cached_property
    def _presences(self) -> dict[str, AsyncPresence]:
        return {}

    def watch(self, name: str, channel: str) -> None:
        async def watch() -> AsyncPresence:
            return await self._subscriber.presence(channel, **handlers(self._queue("change", name).put))

        try:
            self._presences[name] = self._call(watch())
        except SocketIOPGError as error:
            raise Refused(error.code) from error

    def call_presence(self, name: str, method: str, *values: Any, key: str | None = None) -> None:
        async def call() -> None:
            result = getattr(self._presences[name], method)(*values, **({} if key is None else {"key": key}))
            if result is not None:
                await result

        try:
            self._call(call())
        except SocketIOPGError as error:
            raise Refused(error.code) from error

    async def _members(self, name: str) -> tuple[dict[str, Any], int, str | None]:
        presence = self._presences[name]
        return dict(presence.members), presence.count, presence.key

    def members(self, name: str) -> dict[str, Any]:
        return self._call(self._members(name))[0]

    def count(self, name: str) -> int:
        return self._call(self._members(name))[1]

    def own_key(self, name: str) -> str | None:
        return self._call(self._members(name))[2]

    def change(self, name: str) -> tuple[str, str]:
        change: tuple[str, str] = self.next("change", name)
        return change

    def changes(self, name: str) -> list[tuple[str, str]]:
        self.members(name)
        return list(self._queue("change", name).queue)


def handlers(put: Any) -> dict[str, Any]:
    return {
        "on_join": lambda member: put(("join", member["key"])),
        "on_update": lambda member, _: put(("update", member["key"])),
        "on_leave": lambda member: put(("leave", member["key"])),
    }


PEOPLE = {"javascript": JavaScriptPerson, "python": PythonPerson, "asyncio": AsyncioPerson}
