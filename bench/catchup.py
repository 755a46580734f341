"""Measures how long a node needs to catch up on a million messages that it missed, and with how much memory."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from bench.log_database import (
    CHANNEL,
    NODE_ROLE,
    connect,
    of_node_role,
    one,
    payload,
    relay_backend,
    wait_until_relayed,
)
from bench.log_trial import Row, Trial, node
from bench.machine import memory, peak_memory, process_cpu, reset_peak_memory
from bench.reader import Subscriber
from bench.servers import ServerProcess

PER_TRANSACTION = 1_000
WAIT_SECONDS = 900.0
SAMPLE_SECONDS = 0.25


def catchup(trial: Trial) -> list[Row]:
    """Measure two cases, while another node relays.

    In the first, the node is stopped, and its only client reconnects with `since`. In the second, the node and its
    client keep running, but PostgreSQL refuses the node's logins.
    """
    with ExitStack() as stack:
        stack.enter_context(node(trial.url))
        connection = stack.enter_context(closing(connect(trial.url)))
        relay_backend(connection)
        process = stack.enter_context(closing(ServerProcess("ours", of_node_role(trial.url))))
        return [_restarted(trial, connection, process), _cut_off(trial, connection, process)]


def _restarted(trial: Trial, connection: Any, process: ServerProcess) -> Row:
    process.start()
    since = {
        "epoch": str(one(connection, "SELECT epoch::text FROM socketio_pg.head")),
        "position": wait_until_relayed(connection, 10.0),
    }
    process.stop()
    relayed_s = _publish(connection, trial.size.missed)
    server = process.start()
    time.sleep(2)
    before = memory(server.pid)["rss"]
    cpu = process_cpu(server.pid)
    with _sampled(server.pid) as samples, closing(Subscriber(server.port, CHANNEL, since)) as subscriber:
        complete = subscriber.wait(trial.size.missed, WAIT_SECONDS)
        seconds = (subscriber.arrived - subscriber.began) / 1e9
        row = _row("node restarted, client with since", trial, server.pid, before, cpu, seconds)
    process.stop()
    return _finished(row, trial.size.missed, subscriber.received if not complete else None, relayed_s, samples)


def _cut_off(trial: Trial, connection: Any, process: ServerProcess) -> Row:
    server = process.start()
    with closing(Subscriber(server.port, CHANNEL)) as subscriber:
        time.sleep(2)
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER ROLE {NODE_ROLE} NOLOGIN")
            cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (NODE_ROLE,))
            relayed_s = _publish(connection, trial.size.missed)
            before = memory(server.pid)["rss"]
            cpu = process_cpu(server.pid)
            reset_peak_memory(server.pid)
            with _sampled(server.pid) as samples:
                cursor.execute(f"ALTER ROLE {NODE_ROLE} LOGIN")
                # The node retries every few seconds, so the time starts with the first message.
                subscriber.wait(1, 60.0)
                began = time.monotonic_ns()
                complete = subscriber.wait(trial.size.missed, WAIT_SECONDS)
                seconds = (subscriber.arrived - began) / 1e9
        row = _row("node cut off from PostgreSQL", trial, server.pid, before, cpu, seconds)
    process.stop()
    return _finished(row, trial.size.missed, subscriber.received if not complete else None, relayed_s, samples)


def _finished(row: Row, missed: int, received: int | None, relayed_s: float, samples: list[list[float]]) -> Row:
    """Add the figures of both cases to ``row``. ``received``: how many messages arrived, None when all did."""
    row.values["relayed_per_s"] = missed / relayed_s
    row.series = samples
    if received is not None:
        row.flags.append(f"{received} of {missed} received")
    return row


def _row(case: str, trial: Trial, pid: int, before: float, cpu: float, seconds: float) -> Row:
    peak = peak_memory(pid)
    return Row(
        f"{trial.size.missed:,} messages, {case}",
        "log",
        {
            "caught_up_s": seconds,
            "messages_per_s": trial.size.missed / seconds,
            "node_cpu_s": process_cpu(pid) - cpu,
            "rss_mb_before": before / 1024,
            "peak_rss_mb": peak / 1024,
            "peak_more_mb": (peak - before) / 1024,
        },
    )


def _publish(connection: Any, messages: int) -> float:
    """Publish messages. Return the seconds until all of them have positions."""
    began = time.monotonic()
    with connection.cursor() as cursor:
        for first in range(0, messages, PER_TRANSACTION):
            cursor.execute(
                "SELECT count(*) FROM (SELECT socketio_pg.publish(%s, %s) FROM generate_series(1, %s)) AS done",
                (CHANNEL, payload(str(100_000_000 + first)), PER_TRANSACTION),
            )
    wait_until_relayed(connection, WAIT_SECONDS)
    return time.monotonic() - began


@contextmanager
def _sampled(pid: int) -> Iterator[list[list[float]]]:
    """Sample (seconds, RSS in MB) while the body runs."""
    samples: list[list[float]] = []
    ended = threading.Event()
    began = time.monotonic()

    def run() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            samples.append([round(time.monotonic() - began, 2), round(memory(pid)["rss"] / 1024, 1)])

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()
