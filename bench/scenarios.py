"""The scenarios, one function each. Deliveries are messages that arrived at clients."""

import time

from bench.machine import memory as memory_of
from bench.publisher import Job
from bench.publishing import publish
from bench.trial import Row, Scenario, Trial, percentiles

SAMPLES = 50
DRAIN_SECONDS = 15.0
WARM_CLIENTS = 200
ALWAYS = 50_000
"""Deliveries/s up to which `live` continues even if a server lags, so that a stall does not lose the main figures."""


def publish_and_count(trial: Trial, case: str, job: Job, per_message: int) -> Row:
    """Publish a job and wait until all clients have all messages. `per_message`: the number of clients per message."""
    trial.swarm.take_latencies()
    expected = job.messages * per_message
    before = trial.swarm.total
    due = (job.messages - 1) / job.rate
    stop = trial.meter()
    trial.source.start(job)
    complete = trial.swarm.pump(before + expected, due + DRAIN_SECONDS)
    finished = time.monotonic()
    spent = stop()
    sent = trial.source.result(timeout=60)
    delivered = trial.swarm.total - before
    row = spent.row(
        case,
        deliveries_per_cpu_s=delivered / spent.server,
        deliveries_per_s=delivered / spent.wall,
        cpu_us_per_delivery=spent.server / max(1, delivered) * 1e6,
        delivered=delivered / expected,
        lag_s=finished - sent.started - due,
        **percentiles(trial.swarm.take_latencies()),
    )
    if not complete:
        row.flags.append("messages were missing at the deadline")
    if sent.seconds > due * 1.1 + 0.2 or sent.messages < job.messages:
        row.flags.append(f"sending fell behind ({sent.seconds:.1f} s for {due:.1f} s)")
    return row


def live(trial: Trial) -> list[Row]:
    """Measure one room with all clients, at rising rates until the server cannot keep up."""
    rows: list[Row] = []
    joined = 0
    for clients in trial.size.clients:
        trial.join([("live",)] * (clients - joined), SAMPLES)
        joined = clients
        # JIT compilation and filling memory pools must not count for the first rate.
        publish_and_count(trial, "warm-up", Job(("live",), 40_000 // clients, 20), clients)
        trial.quiesce()
        for rate in trial.size.rates:
            seconds = min(trial.size.seconds, 100_000 * 30 / clients / rate)
            messages = max(10, int(rate * seconds))
            row = publish_and_count(trial, f"{clients} clients, {rate}/s", Job(("live",), messages, rate), clients)
            row.values["rate"] = rate
            row.values["clients"] = clients
            if trial.swarm.uneven():
                row.flags.append(f"{trial.swarm.uneven()} clients counted differently")
            rows.append(row)
            if row.values["delivered"] < 1:
                return rows
            if row.values["lag_s"] > 0.1 * messages / rate + 0.2 or row.values["server_busy"] > 0.95:
                row.values["saturated"] = 1.0
                if clients * rate >= ALWAYS:
                    break
        trial.quiesce()
    return rows


def burst(trial: Trial) -> list[Row]:
    """Publish 100 messages in one transaction to 1,000 clients, repeatedly, each time until the last client has all."""
    trial.join([("live",)] * 1_000, 20)
    size = 100
    lasts: list[float] = []
    latencies: list[int] = []
    stop = trial.meter()
    for _ in range(trial.size.bursts):
        before = trial.swarm.total
        trial.source.start(Job(("live",), size, 1.0, per_commit=size))
        if not trial.swarm.pump(before + size * 1_000, DRAIN_SECONDS):
            raise TimeoutError(f"{trial.swarm.total - before} of {size * 1_000} messages of a burst arrived")
        done = time.monotonic()
        lasts.append((done - trial.source.result(timeout=10).started) * 1e3)
        latencies += trial.swarm.take_latencies()
    spent = stop()
    delivered = size * 1_000 * trial.size.bursts
    lasts.sort()
    row = spent.row(
        "100 messages, 1000 clients",
        deliveries_per_cpu_s=delivered / spent.server,
        deliveries_per_s=delivered / spent.wall,
        cpu_us_per_delivery=spent.server / delivered * 1e6,
        last_client_ms=lasts[len(lasts) // 2],
        **percentiles(latencies),
    )
    if trial.swarm.uneven():
        row.flags.append(f"{trial.swarm.uneven()} clients counted differently")
    # A burst always keeps the load generator busy; the server's CPU seconds do not depend on that.
    row.flags = [flag for flag in row.flags if "saturated" not in flag]
    return [row]


def rooms(trial: Trial) -> list[Row]:
    """Measure many rooms of ten clients; each message goes to one room."""
    names = tuple(f"room{number:04}" for number in range(trial.size.rooms))
    trial.join([(name,) for name in names for _ in range(10)], SAMPLES)
    rate = 400
    job = Job(names, int(rate * trial.size.seconds), rate)
    return [publish_and_count(trial, f"{len(names)} rooms of 10, {rate}/s", job, 10)]


def connect(trial: Trial) -> list[Row]:
    """Measure many clients that connect and subscribe to one channel at the same time."""
    rows: list[Row] = []
    # The first clients cause imports, the LISTEN and similar one-time work.
    trial.swarm.connect([("storm",)] * WARM_CLIENTS, 30)
    for clients in trial.size.storms:
        for transport in ("websocket", "polling"):
            trial.quiesce()
            stop = trial.meter()
            trial.swarm.connect([("storm",)] * clients, 30 + clients / 100, polling=transport == "polling")
            spent = stop()
            rows.append(
                spent.row(
                    f"{clients} clients, {transport}",
                    cpu_ms_per_client=spent.server / clients * 1e3,
                    wall_ms_per_client=spent.wall / clients * 1e3,
                )
            )
            for client in trial.swarm.clients[WARM_CLIENTS:]:
                trial.swarm.forget(client.socket)
                client.socket.close()
            del trial.swarm.clients[WARM_CLIENTS:]
    return rows


def memory(trial: Trial) -> list[Row]:
    """Measure the resident memory per additional idle, subscribed client on a warm server, after a round of pings."""
    # Idle before the baseline too: Node collects garbage only after some idle seconds.
    trial.swarm.connect([("idle",)] * WARM_CLIENTS, 30)
    trial.swarm.pump(None, min(12.0, trial.size.idle_seconds))
    before = memory_of(trial.server.pid)
    rows: list[Row] = []
    joined = 0
    for clients in trial.size.idle_clients:
        trial.swarm.connect([("idle",)] * (clients - joined), 30 + clients / 100)
        joined = clients
        stop = trial.meter()
        trial.swarm.pump(None, trial.size.idle_seconds)
        spent = stop()
        after = memory_of(trial.server.pid)
        rows.append(
            spent.row(
                f"{clients} idle clients",
                rss_kb_per_client=(after["rss"] - before["rss"]) / clients,
                pss_kb_per_client=(after["pss"] - before["pss"]) / clients,
                rss_mb=after["rss"] / 1024,
                rss_mb_before=before["rss"] / 1024,
            )
        )
    return rows


def latency(trial: Trial) -> list[Row]:
    """Measure from the commit to 100 clients in a room at ten messages per second: without any queueing."""
    trial.join([("live",)] * 100, 100)
    job = Job(("live",), int(10 * trial.size.seconds * 4), 10, jitter=True)
    return [publish_and_count(trial, "100 clients, 10/s", job, 100)]


def channels(trial: Trial) -> list[Row]:
    """Measure the cost of subscribing to many channels, and of one delivery with that many channels."""
    rows: list[Row] = []
    total = 0
    for wanted in trial.size.channels:
        names = tuple(f"channel{number:06}" for number in range(total, wanted))
        clients = min(len(names), 200)
        first = len(trial.swarm.clients)
        stop = trial.meter()
        trial.swarm.connect([names[number::clients] for number in range(clients)], 60 + len(names) / 50)
        spent = stop()
        subscribing = spent.server / len(names) * 1e3
        wall = spent.wall / len(names) * 1e3
        total = wanted
        trial.swarm.pump(None, 0.5)
        trial.quiesce()
        trial.swarm.sample(trial.swarm.clients[first:])
        everything = tuple(f"channel{number:06}" for number in range(total))
        rate = 400
        # A stride that is coprime to the number of channels visits all of them, far apart.
        job = Job(tuple(everything[(n * 7919) % total] for n in range(total)), int(rate * trial.size.seconds), rate)
        row = publish_and_count(trial, f"{wanted} channels", job, 1)
        row.values["subscribe_cpu_ms"] = subscribing
        row.values["subscribe_wall_ms"] = wall
        row.values["channels"] = wanted
        rows.append(row)
    return rows


SCENARIOS: dict[str, Scenario] = {
    "live": live,
    "burst": burst,
    "rooms": rooms,
    "connect": connect,
    "memory": memory,
    "publish": publish,
    "latency": latency,
    "channels": channels,
}
