"""Scenarios that write: the cost of publishing for business transactions, and the rate that one node can sustain."""

from contextlib import closing

from bench.log_trial import Row, Trial, node_and_subscriber
from bench.reader import Subscriber
from bench.servers import Server
from bench.writers import TRANSACTIONS, Flushes, Watch, Writers, Written, business_table, publishing, series

WRITERS = 32
ADDED_FLUSH_MS = (0.0, 0.2, 0.5, 1.0, 2.0)
"""With NOTIFY each transaction waits for a flush of its own, so the ratio depends on the disk more than on anything."""
PUBLISHERS = 16
PER_TRANSACTION = (1, 10, 100)
DRAIN_SECONDS = 120.0
LAG_SECONDS = 0.5
"""A smaller backlog at the end of a step does not count: it is in batches and buffers."""
LAG_MESSAGES = 500


def transactions(trial: Trial) -> list[Row]:
    """Run 32 connections whose transactions insert a row and publish nothing, through the log, or by NOTIFY.

    A node with a subscribed client runs all the time; with `plain` both are idle. Flushes of the WAL take as
    long as on this disk, and longer.
    """
    business_table(trial.url)
    rows: list[Row] = []
    with node_and_subscriber(trial.url) as (server, subscriber):
        for variant in TRANSACTIONS:
            _write(trial, server, subscriber, "warm", variant, trial.size.warm_seconds)
        # Many short rounds, so that other processes disturb all variants alike; ratios are those within a round.
        for number in range(trial.size.rounds):
            for added in ADDED_FLUSH_MS:
                case = f"{WRITERS} writers, " + (f"flush +{added:g} ms" if added else "this disk")
                order = trial.in_turn(tuple(TRANSACTIONS) if not added else ("log", "notify"))
                with trial.cluster.slower_flushes(added):
                    for variant in order if number % 2 == 0 else order[::-1]:
                        row = _write(trial, server, subscriber, case, variant, trial.size.write_seconds)
                        row.values["round"] = number
                        rows.append(row)
    return rows


def _write(trial: Trial, server: Server, subscriber: Subscriber, case: str, variant: str, seconds: float) -> Row:
    before = subscriber.received
    with closing(Watch(trial.url, server.pid, subscriber)) as watch, closing(Flushes(trial.url)) as flushes:
        written = Writers(trial.cluster, trial.url, TRANSACTIONS[variant], WRITERS, seconds).wait()
        last = watch.backlog()
        spent = watch.pause()
        row = Row(case, variant, {"tps": written.tps, "transaction_ms": written.latency_ms, **spent})
        if variant == "log":
            halves = [sample.outbox for sample in watch.samples]
            middle = len(halves) // 2
            row.values |= {
                "outbox_end": last.outbox,
                "outbox_first_half": _mean(halves[:middle]),
                "outbox_second_half": _mean(halves[middle:]),
                "drain_s": watch.drain(DRAIN_SECONDS),
                "outbox_rows": watch.outbox_rows(),
            }
            row.series = series(watch.samples)
        row.values |= flushes.since_start(written.transactions)
    _check(row, subscriber, before, 0 if variant == "plain" else written.transactions)
    return row


def throughput(trial: Trial) -> list[Row]:
    """Raise the rate until the backlog grows, for transactions of 1, 10 and 100 messages of 100 bytes."""
    rows: list[Row] = []
    with node_and_subscriber(trial.url) as (server, subscriber):
        _step(trial, server, subscriber, 1, 1_000)
        for size in PER_TRANSACTION:
            name = f"{size} a transaction"
            best: Row | None = None
            failed = 0
            for rate in trial.size.rates:
                row = _step(trial, server, subscriber, size, rate)
                rows.append(row)
                if not row.values["kept_up"]:
                    failed += 1
                elif best is None or row.values["published_per_s"] > 1.1 * best.values["published_per_s"]:
                    best = row
                else:
                    # The publishers are at their limit and cannot offer a higher rate.
                    break
                # A single failure, for example because of a checkpoint, does not end the series.
                if failed == 2:
                    break
            if best is not None:
                rows.append(Row(f"{name}, sustained", "log", {**best.values}))
    return rows


def _step(trial: Trial, server: Server, subscriber: Subscriber, size: int, rate: int) -> Row:
    before = subscriber.received
    case = f"{size} a transaction, {rate}/s offered"
    with closing(Watch(trial.url, server.pid, subscriber)) as watch:
        written: Written = Writers(
            trial.cluster, trial.url, publishing(size), PUBLISHERS, trial.size.step_seconds, rate / size
        ).wait()
        last = watch.backlog()
        spent = watch.pause()
        published = written.tps * size
        backlog = last.outbox + last.in_flight
        values = {
            "published_per_s": published,
            "backlog_end": float(backlog),
            "kept_up": float(backlog <= max(LAG_MESSAGES, LAG_SECONDS * published)),
            "transaction_ms": written.latency_ms,
            "drain_s": watch.drain(DRAIN_SECONDS),
            **spent,
        }
        row = Row(case, "log", values, series=series(watch.samples))
    _check(row, subscriber, before, written.transactions * size)
    return row


def _check(row: Row, subscriber: Subscriber, before: int, published: int) -> None:
    if not subscriber.wait(before + published, 30.0) or subscriber.received != before + published:
        row.flags.append(f"{published} published, {subscriber.received - before} received")


def _mean(numbers: list[int]) -> float:
    return sum(numbers) / max(1, len(numbers))
