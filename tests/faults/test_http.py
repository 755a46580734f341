"""The HTTP API during outages of the database: it answers 503 in time and recovers automatically."""

import time

import pytest

from tests.support.http_api import HttpApi, after, payloads, refusal
from tests.support.nightly import sampled
from tests.support.patience import PATIENCE
from tests.support.postgres import Cluster
from tests.support.proxy import Proxy
from tests.support.server import ServerProcess

UNAVAILABLE = (503, "database_unavailable")
#: Seconds that the answers to one fault may take: the server's own timeouts, plus an allowance for a slow machine.
MAX_SECONDS = 60.0


@pytest.mark.parametrize("faults", sampled([["black_hole"], ["refuse", "black_hole"]], lambda faults: len(faults) == 1))
def test_unreachable_database_answers_503_in_time(
    breakable: Cluster, proxy: Proxy, channel: str, faults: list[str]
) -> None:
    server = ServerProcess(proxy.url, AUTO_INIT="1", DRAIN_SECONDS="0.2")
    try:
        api = HttpApi(server)
        while "epoch" not in (start := api.page(channel)):
            pass
        assert api.publish(channel, 1, durable=True).status_code == 200
        for fault in faults:
            getattr(proxy, fault)()
            server.wait_not_ready()
            began = time.monotonic()
            both = [{"channel": channel, "payload": n, "durable": n == 1} for n in range(2)]
            for answer in (api.publish(channel, 2), api.publish_together(*both), api.messages(channel, **after(start))):
                assert refusal(answer) == UNAVAILABLE
                assert int(answer.headers["Retry-After"]) >= 1
            assert time.monotonic() - began < MAX_SECONDS
            proxy.restore()
            server.wait_ready()
        assert api.publish(channel, 3, durable=True).status_code == 200
        # No refused message arrives. The last message may take a moment to get its position.
        found: list[int] = []
        while not found or found[-1] != 3:
            page = api.page(channel, **after(start))
            assert page["recovered"] is True
            found = payloads(page)
        assert found == [1, 3]
    finally:
        server.close()


def test_requests_without_a_database_answer_503(channel: str) -> None:
    without_database = ServerProcess(
        "postgresql://postgres@127.0.0.1:9/without_database", wait="http", DRAIN_SECONDS="0.2"
    )
    try:
        api = HttpApi(without_database)
        assert refusal(api.publish(channel, 1)) == UNAVAILABLE
        assert refusal(api.publish(channel, "x" * 8000)) == UNAVAILABLE
        assert refusal(api.messages(channel, history=1)) == UNAVAILABLE
        # An invalid request is refused without the database.
        assert refusal(api.publish("*", 1)) == (400, "invalid_channel")
    finally:
        without_database.close()


def test_polling_client_misses_nothing_during_restarts(breakable: Cluster, proxy: Proxy, channel: str) -> None:
    """A client that repeats its requests gets everything from the log."""
    server = ServerProcess(proxy.url, AUTO_INIT="1", DRAIN_SECONDS="0.2")
    try:
        api = HttpApi(server)
        while "epoch" not in (start := api.page(channel)):
            pass
        published, found, page = [], [], start
        for number in range(200):
            if number in (50, 100, 150):
                breakable.restart("immediate" if number == 100 else "fast")
            answer = api.publish(channel, number, durable=True)
            if answer.status_code == 200:
                published.append(number)
            else:
                assert refusal(answer) == UNAVAILABLE
            read = api.messages(channel, **after(page))
            if read.status_code == 200:
                page = read.json()
                assert page["recovered"] is True
                found += payloads(page)
            else:
                assert refusal(read) == UNAVAILABLE
        server.wait_ready()
        deadline = time.monotonic() + PATIENCE
        while not set(published) <= set(found) and time.monotonic() < deadline:
            page = api.page(channel, **after(page))
            found += payloads(page)
        # Every accepted message arrives once, in order. A refused one may have been committed, too.
        assert found == sorted(set(found))
        assert set(published) <= set(found)
    finally:
        server.close()
