"""Features specific to AsyncSubscriber: iteration, back-pressure, cancellation. See also test_replay_clients.py."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from socketio_pg.aio import AsyncSubscriber, AsyncSubscription
from socketio_pg.core.errors import (
    ForbiddenError,
    InvalidChannelError,
    InvalidRequestError,
    PayloadTooLargeError,
    UnauthorizedError,
)
from socketio_pg.subscriber.subscriber import Gap
from tests.support.log import Log, wait_installed
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster, in_thread
from tests.support.server import ROOT, ServerProcess, free_port

Asynchronous = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "live_aio", AUTO_INIT="1")
    wait_installed(made)
    yield made
    made.server.close()


def run(work: Asynchronous) -> None:
    """Run ``work`` in an event loop, in which no task may be left."""

    async def checked() -> None:
        await asyncio.wait_for(work(), 3 * PATIENCE)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    in_thread(asyncio.run, checked())


def fast(log: Log, **options: Any) -> AsyncSubscriber:
    return AsyncSubscriber(log.server.url, reconnection_delay=0.1, reconnection_delay_max=0.5, **options)


async def numbers(subscription: AsyncSubscription, count: int) -> list[int]:
    return [(await anext(subscription))["payload"][0] for _ in range(count)]


def test_import_needs_neither_flask_nor_eventlet_nor_the_driver() -> None:
    names = ["flask", "flask_socketio", "eventlet", "gevent", "psycopg2", "sqlalchemy", "gunicorn"]
    program = f"import sys, socketio_pg.aio; sys.exit(str([n for n in {names} if n in sys.modules] or ''))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_messages_errors_and_the_end_of_an_iteration(log: Log, channel: str) -> None:
    async def work() -> None:
        async with fast(log) as subscriber:
            subscription = await subscriber.subscribe(channel, history=5)
            await subscriber.publish(channel, {"text": "ünïcödé 🐘"}, durable=False)
            assert await anext(subscription) == {"channel": channel, "payload": {"text": "ünïcödé 🐘"}}
            await subscriber.publish(channel, 10**30, durable=True)
            message = await anext(subscription)
            assert message["payload"] == 10**30
            assert subscription.position == {"epoch": message["epoch"], "position": message["position"]}
            for raised, name, payload in (
                (InvalidChannelError, "*", 1), (InvalidRequestError, channel, float("nan")),
                (PayloadTooLargeError, channel, "x" * 8000),
            ):  # fmt: skip
                with pytest.raises(raised):
                    await subscriber.publish(name, payload, durable=False)
            with pytest.raises(InvalidRequestError, match="history"):
                await subscriber.subscribe(f"{channel}-2", history=-1)
            taking = asyncio.create_task(collect(subscription))
            await subscriber.unsubscribe(subscription)
            assert await taking == []
            with pytest.raises(TypeError):
                await subscriber.unsubscribe(None)  # type: ignore[arg-type]
            other = await subscriber.subscribe(channel, since=subscription.position)
            taking = asyncio.create_task(collect(other))
        assert await taking == []
        with pytest.raises(ConnectionError, match="closed"):
            await subscriber.publish(channel, 1)

    run(work)


async def collect(subscription: AsyncSubscription) -> list[Any]:
    return [message["payload"] async for message in subscription]


def test_slow_consumer_is_bounded_in_memory_and_loses_no_log_messages(log: Log, channel: str) -> None:
    total = 3000
    gaps: list[Gap] = []

    async def work() -> None:
        async with fast(log, most_waiting=300_000) as subscriber:
            link = subscriber._link
            subscription = await subscriber.subscribe(channel, on_gap=gaps.append)
            other = await subscriber.subscribe(f"{channel}-other")
            await asyncio.to_thread(log.publish, channel, 1, total, 1000)
            assert await link.changed.wait_for(lambda: link.paused, PATIENCE)
            # The others go on.
            await subscriber.publish(f"{channel}-other", [7], durable=True)
            assert await numbers(other, 1) == [7]
            assert subscription._cost < 2_000_000
            assert await numbers(subscription, total) == list(range(1, total + 1))
            await asyncio.to_thread(log.publish, channel, total + 1, total + 1)
            assert await numbers(subscription, 1) == [total + 1]
        assert {(gap["tier"], gap["reason"]) for gap in gaps} == {("notify", "slow_handler")}

    run(work)


def test_cancelled_calls_lose_nothing(log: Log, channel: str) -> None:
    async def work() -> None:
        found: list[int] = []
        async with fast(log) as subscriber:
            subscription = await subscriber.subscribe(channel)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(subscription), 0.01)

            async def take() -> None:
                async for message in subscription:
                    found.append(message["payload"][0])

            publishing = asyncio.create_task(asyncio.to_thread(log.publish, channel, 1, 500))
            while len(found) < 500:
                task = asyncio.create_task(take())
                await asyncio.sleep(0.001)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await publishing
            for call in (subscriber.subscribe(f"{channel}-2"), subscriber.publish(f"{channel}-2", 1)):
                task = asyncio.create_task(call)  # type: ignore[arg-type]
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert (
                f"{channel}-2" not in subscriber._link.channels or not subscriber._link.channels[f"{channel}-2"].members
            )
        assert found == list(range(1, 501))

    run(work)


def test_gap_is_handled_in_order_and_again_after_a_cancellation(log: Log, channel: str) -> None:
    seen: list[Any] = []

    async def work() -> None:
        async with fast(log) as subscriber:

            async def on_gap(gap: Gap) -> None:
                seen.append(gap["reason"])
                await asyncio.sleep(0)
                if seen.count("database_connection_lost") == 1:
                    raise asyncio.CancelledError

            subscription = await subscriber.subscribe(channel, on_gap=on_gap)
            await asyncio.to_thread(log.publish, channel, 1, 1)
            assert await numbers(subscription, 1) == [1]
            await asyncio.to_thread(terminate, log)
            with pytest.raises(asyncio.CancelledError):
                await anext(subscription)
            await asyncio.to_thread(log.publish, channel, 2, 2)
            assert await numbers(subscription, 1) == [2]
            assert seen[:2] == ["database_connection_lost"] * 2

    run(work)


def test_live_comes_after_the_replay(log: Log, channel: str) -> None:
    """Of a snapshot as well: it delivers what is not in the rows."""
    log.publish(channel, 1, 3)
    log.settle()
    [(token,)] = log.sql("SELECT socketio_pg.snapshot()")
    log.publish(channel, 4, 5)
    log.settle()

    async def work() -> None:
        async with fast(log) as subscriber:
            for options, replayed in (({"history": 10}, [1, 2, 3, 4, 5]), ({"since": token}, [4, 5])):
                seen: list[Any] = []

                async def on_live(live: Any, seen: list[Any] = seen) -> None:
                    await asyncio.sleep(0)
                    seen.append(live["channel"])

                subscription = await subscriber.subscribe(channel, on_live=on_live, **options)
                taking = asyncio.create_task(anext(subscription))
                while len(seen) < len(replayed) + 1:
                    await asyncio.wait([taking], timeout=0.05)
                    if taking.done():
                        seen.append((await taking)["payload"][0])
                        taking = asyncio.create_task(anext(subscription))
                assert seen == [*replayed, channel]
                assert subscription.live.is_set()
                await subscriber.unsubscribe(subscription)
                await asyncio.gather(taking, return_exceptions=True)

    run(work)


def terminate(log: Log) -> None:
    log.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid()"
    )


def test_connections_that_cannot_be_made(log: Log, channel: str) -> None:
    async def work() -> None:
        port = free_port()
        with pytest.raises(ConnectionError, match=f"127.0.0.1:{port}"):
            async with AsyncSubscriber(f"http://127.0.0.1:{port}"):
                pass
        with pytest.raises(ValueError, match="must be like"):
            AsyncSubscriber("127.0.0.1:3030")
        async with AsyncSubscriber(f"http://127.0.0.1:{port}", retry=True, timeout=0.2) as subscriber:
            with pytest.raises(ConnectionError):
                await subscriber.subscribe(channel)
            with pytest.raises(ConnectionError):
                await subscriber.publish(channel, 1)
            assert subscriber._link.channels == {}
        with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ConnectionError, match="did not answer"):
            async with AsyncSubscriber(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2):
                pass

    run(work)


def test_token_from_a_coroutine_and_authenticate(newest_pg: Cluster, channel: str) -> None:
    from tests.live.test_client_tokens import SECRET, token

    server = ServerProcess(newest_pg.url(), JWT_SECRET=SECRET, AUTHORIZATION="claims", DRAIN_SECONDS="0.2")

    async def fetch() -> str:
        await asyncio.sleep(0)
        return token(3600, "alice", subscribe=["a*"])

    async def work() -> None:
        with pytest.raises(UnauthorizedError):
            async with AsyncSubscriber(server.url):
                pass
        async with AsyncSubscriber(server.url, token=fetch) as subscriber:
            with pytest.raises(ForbiddenError):
                await subscriber.subscribe("b")
            await subscriber.authenticate(token(3600, "alice", subscribe=["b*"]))
            subscription = await subscriber.subscribe("b")
            with pytest.raises(UnauthorizedError):
                await subscriber.authenticate("nonsense")
            await subscriber.authenticate(token(3600, "alice", subscribe=["a*"]))
            with pytest.raises(ForbiddenError):
                await anext(subscription)

    try:
        run(work)
    finally:
        server.close()
