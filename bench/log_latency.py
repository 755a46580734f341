"""Measures the latency from commit to client on an idle system, through the log and by NOTIFY."""

import random
import time
from contextlib import closing

from bench.log_database import CHANNEL, connect, payload
from bench.log_trial import Row, Trial, node_and_subscriber
from bench.trial import percentiles

RATE = 20
STATEMENTS = {
    "log": "SELECT socketio_pg.publish(%s, %s)",
    "notify": "SELECT pg_notify(%s, %s)",
}


def latency(trial: Trial) -> list[Row]:
    """Publish one message at a time, 20 per second, each in its own transaction.

    Measured twice: from the return of the commit (`p50_ms` …), and from before the statement was sent, including the
    commit (`whole_p50_ms` …). A message that arrives before the commit returns counts as 0.
    """
    rows: list[Row] = []
    for variant in trial.in_turn(tuple(STATEMENTS)):
        with node_and_subscriber(trial.url, timed=True) as (_, subscriber), closing(connect(trial.url)) as connection:
            cursor = connection.cursor()
            sent: dict[int, int] = {}
            committed: dict[int, int] = {}
            messages = int(RATE * trial.size.latency_seconds)
            time.sleep(2)
            for number in range(100_000_000, 100_000_000 + messages):
                # Random intervals, so that they do not synchronise with a timer of the server.
                time.sleep(random.uniform(0.5, 1.5) / RATE)
                sent[number] = time.monotonic_ns()
                cursor.execute(STATEMENTS[variant], (CHANNEL, payload(str(number))))
                committed[number] = time.monotonic_ns()
            complete = subscriber.wait(messages, 10.0)
            arrivals = subscriber.finish()
        after = [max(0, arrived - committed[number]) for number, arrived in arrivals.items()]
        whole = [arrived - sent[number] for number, arrived in arrivals.items()]
        commits = [committed[number] - sent[number] for number in sent]
        values = {
            **percentiles(after),
            **{f"whole_{name}": value for name, value in percentiles(whole).items()},
            "commit_p50_ms": percentiles(commits)["p50_ms"],
            "max_ms": max(after, default=0) / 1e6,
        }
        row = Row(f"at rest, {RATE}/s", variant, values)
        if not complete:
            row.flags.append(f"{messages} published, {len(arrivals)} received")
        rows.append(row)
    return rows
