"""The checker's clients for people: subscriptions to patterns that overlap, and the presence of a room."""

import asyncio
import contextlib
import json
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random
from typing import Any

from socketio_pg.aio import AsyncPresence, AsyncSubscriber
from socketio_pg.core.channels import match_pattern
from socketio_pg.core.errors import SocketIOPGError
from socketio_pg.subscriber import Gap, PresenceMember
from tests.support.checker import Improper, Note, Subscribed
from tests.support.checker_programs import delivered

#: A member with its states, in the order of their text.
Room = Mapping[str, Sequence[str]]

ROOM = "room"
#: All channels, some of them, and one.
SUBSCRIPTIONS = ("*", "*r*", "orders")


class PeopleProgram:
    """An AsyncSubscriber in a thread of its own. It joins, changes and leaves, and is cut off, until :meth:`calm`."""

    def __init__(
        self, name: str, key: str, port: int, channels: Sequence[str], epoch: str, random: Random, restless: float
    ) -> None:
        self.name = name
        self.key = f"anonymous:{key}"
        #: For each subscription the channels that match, and what has arrived.
        self.histories: dict[str, tuple[Sequence[str], list[Note]]] = {
            f"{name} {one}": ([channel for channel in channels if match_pattern(one, channel)], [])
            for one in SUBSCRIPTIONS
        }
        #: The state with which it wants to be in the room, as JSON; None: it is not there. Final if it is settled.
        self.wish: str | None = None
        self.settled = False
        #: The members, as it knows them.
        self.room: Room = {}
        self.changes: Counter[str] = Counter()
        self.cuts = 0
        self._key = key
        self._url = f"http://127.0.0.1:{port}"
        self._epoch = epoch
        self._random = random
        self._restless = restless
        self._calm = False
        self._copy: dict[str, Any] | None = None
        self._positions: dict[str, dict[str, int]] = {one: {} for one in self.histories}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), name=name)
        self._ending = asyncio.Event()

    def start(self) -> None:
        self._thread.start()

    def calm(self) -> None:
        """Stop being restless. Can be called from any thread."""
        self._calm = True

    def caught_up(self, newest: dict[str, int]) -> bool:
        return all(
            self._positions[one].get(channel, -1) >= newest.get(channel, 0)
            for one, (channels, _) in self.histories.items()
            for channel in channels
        )

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()
        self._loop.close()

    async def _run(self) -> None:
        options = {"reconnection_delay": 0.1, "reconnection_delay_max": 0.5, "retry_delay": 0.1, "retry_delay_max": 0.5}
        async with AsyncSubscriber(self._url, retry=True, **options) as subscriber:  # type: ignore[arg-type]
            tasks = [asyncio.create_task(self._take(subscriber, one)) for one in SUBSCRIPTIONS]
            tasks += [asyncio.create_task(self._be_present(subscriber)), asyncio.create_task(self._cut(subscriber))]
            await self._ending.wait()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _take(self, subscriber: AsyncSubscriber, name: str) -> None:
        channels, notes = self.histories[f"{self.name} {name}"]
        positions, newest = self._positions[f"{self.name} {name}"], 0

        def on_gap(gap: Gap) -> None:
            if gap["tier"] == "log":
                notes.append(Improper(f"got {gap}"))

        subscribe = subscriber.subscribe_pattern if "*" in name else subscriber.subscribe
        try:
            subscription = await _until_done(lambda: subscribe(name, since=f"{self._epoch}:0", on_gap=on_gap))
            for channel in channels:
                notes.append(Subscribed(channel, 0))
                positions[channel] = 0
            async for message in subscription:
                found = delivered(message)
                if found.channel not in channels or name not in message.get(
                    "matches", [message.get("pattern", found.channel)]
                ):
                    notes.append(Improper(f"got a message of {found.channel}: {message}"))
                    continue
                notes.append(found)
                if found.position is not None:
                    if found.position <= newest:
                        notes.append(Improper(f"got {found.position} after {newest}"))
                    newest = positions[found.channel] = found.position
        except Exception as error:
            notes.append(Improper(f"{name} ended with {error!r}"))

    # -- presence ------------------------------------------------------------------------------------------------------

    async def _be_present(self, subscriber: AsyncSubscriber) -> None:
        try:
            room = await _until_done(
                lambda: subscriber.presence(
                    ROOM,
                    on_join=lambda member: self._changed("join", member, None),
                    on_update=lambda member, before: self._changed("update", member, before),
                    on_leave=lambda member: self._changed("leave", member, member),
                    on_sync=self._sync,
                )
            )
            number = 0
            while not self._calm:
                await asyncio.sleep(self._random.expovariate(1 / self._restless))
                number += 1
                await self._change(room, self._random.choice(("join", "join", "update", "leave")), number)
            while True:
                with contextlib.suppress(ConnectionError, TimeoutError):
                    await self._change(room, self._random.choice(("join", "leave")), -1)
                    break
            self.settled = True
        except Exception as error:
            self._improper(f"presence ended with {error!r}")

    async def _change(self, room: AsyncPresence, kind: str, number: int) -> None:
        state = {"name": self.name, "number": number}
        with contextlib.suppress(ConnectionError, TimeoutError):
            if kind == "leave":
                self.wish = None
                await room.leave()
            elif kind == "join" or self.wish is None:
                self.wish = json.dumps(state)
                await room.join(state, key=self._key)
            else:
                self.wish = json.dumps(state)
                await room.update(state)

    def _changed(self, kind: str, member: PresenceMember, before: PresenceMember | None) -> None:
        self.changes[kind] += 1
        if self._copy is None:
            return
        known = self._copy.pop(member["key"], None)
        if (known and _states(known)) != (before and _states(before)):
            self._improper(f"was told that {member} did {kind} in place of {before}, which it had not")
        if kind != "leave":
            self._copy[member["key"]] = member

    def _sync(self, members: dict[str, PresenceMember]) -> None:
        if self._copy is not None and _room(self._copy) != _room(members):
            self._improper(f"has the members {members}, but the changes lead to {self._copy}")
        self._copy = members.copy()
        self.room = _room(members)

    async def _cut(self, subscriber: AsyncSubscriber) -> None:
        """Lose the connection now and then."""
        while not self._calm:
            await asyncio.sleep(self._random.expovariate(0.3 / self._restless))
            connection = subscriber._link.connection
            if connection is not None:
                self.cuts += 1
                connection.abort()

    def _improper(self, text: str) -> None:
        next(iter(self.histories.values()))[1].append(Improper(text))


def expected_room(people: Sequence[PeopleProgram]) -> Room:
    """Return the members of the room when all are settled."""
    found: dict[str, list[str]] = {}
    for one in people:
        if one.wish is not None:
            found.setdefault(one.key, []).append(one.wish)
    return {key: sorted(states) for key, states in found.items()}


def _room(members: Mapping[str, PresenceMember]) -> Room:
    return {key: _states(one) for key, one in members.items()}


def _states(member: PresenceMember) -> list[str]:
    return sorted(json.dumps(meta["state"]) for meta in member["metas"])


async def _until_done(begin: Callable[[], Awaitable[Any]]) -> Any:
    """Return the result of ``begin()``, which fails while there is no node or database."""
    while True:
        with contextlib.suppress(SocketIOPGError, ConnectionError, TimeoutError):
            return await begin()
        await asyncio.sleep(0.2)
