"""One run of a scenario with a running server: its process, its meters and its rows."""

import gc
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from bench.machine import Cores, core_busy_ticks
from bench.publisher import Publisher, RawSource, Source
from bench.servers import Server
from bench.swarm import Swarm

SATURATED = 0.9
OTHERS = 0.1
SETTLE_SECONDS = 0.4


@dataclass(frozen=True)
class Size:
    """The size of a run: --quick, normal or --full."""

    clients: tuple[int, ...]
    rates: tuple[int, ...]
    seconds: float
    bursts: int
    rooms: int
    storms: tuple[int, ...]
    idle_clients: tuple[int, ...]
    idle_seconds: float
    channels: tuple[int, ...]


QUICK = Size((1_000,), (5, 20, 50), 2.0, 5, 100, (300,), (1_000,), 2.0, (100, 1_000))
NORMAL = Size(
    (1_000,),
    (5, 20, 50, 100, 200, 400, 800),
    5.0,
    20,
    1_000,
    (1_000, 5_000),
    (1_000, 5_000),
    27.0,
    (100, 1_000, 5_000, 20_000),
)
FULL = Size(
    (1_000, 10_000),
    (5, 20, 50, 100, 200, 400, 800),
    5.0,
    20,
    1_000,
    (1_000, 5_000),
    (1_000, 5_000),
    27.0,
    NORMAL.channels,
)


@dataclass
class Row:
    """One measured case. `flags` say why a result is doubtful."""

    case: str
    values: dict[str, float]
    flags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Spent:
    """The cost of a period: wall seconds, CPU seconds of the server, and shares of the wall time.

    The shares are the CPU times of the load generator, of its core, and of other processes on the server's core.
    """

    wall: float
    server: float
    generator_busy: float
    load_core_busy: float
    others_busy: float

    def row(self, case: str, **values: float) -> Row:
        row = Row(case, dict(values))
        row.values["server_busy"] = self.server / self.wall
        row.values["generator_busy"] = self.generator_busy
        row.values["load_core_busy"] = self.load_core_busy
        row.values["others_busy"] = self.others_busy
        if self.generator_busy > SATURATED:
            row.flags.append("load generator saturated")
        elif self.load_core_busy > SATURATED:
            row.flags.append("load core saturated")
        if self.others_busy > OTHERS:
            row.flags.append("other processes ran on the server's core")
        return row


@dataclass
class Trial:
    """The inputs of a scenario."""

    server: Server
    database_url: str
    cores: Cores
    size: Size
    swarm: Swarm
    source: Source

    def meter(self) -> Callable[[], Spent]:
        """Start measuring. Call the result to stop."""
        wall, server, own = time.monotonic(), self.server.cpu_seconds(), time.process_time()
        load, beside = core_busy_ticks(self.cores.load), core_busy_ticks(self.cores.server)

        def stop() -> Spent:
            seconds = time.monotonic() - wall
            spent = self.server.cpu_seconds() - server
            return Spent(
                seconds,
                spent,
                (time.process_time() - own) / seconds,
                _share(load, core_busy_ticks(self.cores.load)),
                max(0.0, _share(beside, core_busy_ticks(self.cores.server)) - spent / seconds),
            )

        return stop

    def quiesce(self, seconds: float = 10.0) -> None:
        """Keep reading until the server is almost idle for half a second, so that cases do not affect each other."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            before = self.server.cpu_seconds()
            self.swarm.pump(None, 0.5)
            if self.server.cpu_seconds() - before < 0.02:
                return

    def join(self, channels: Sequence[tuple[str, ...]], samples: int) -> None:
        """Connect a client for each entry. Check `samples` of them, evenly spaced, frame by frame."""
        if isinstance(self.source, RawSource):
            for first in range(0, len(channels), 1_000):
                # In batches that fit into the listen backlog: this server accepts only on request.
                self.swarm.connect_bare(min(1_000, len(channels) - first))
                self.source.expect(len(self.swarm.clients))
        else:
            self.swarm.connect(channels, seconds=30 + len(channels) / 100)
        self.swarm.pump(None, SETTLE_SECONDS)
        self.quiesce()
        self.swarm.sample(self.swarm.clients[:: max(1, len(channels) // samples)])
        self.swarm.total = 0
        for fd in self.swarm.counts:
            self.swarm.counts[fd] = 0


Scenario = Callable[[Trial], list[Row]]


def _share(before: tuple[int, int], after: tuple[int, int]) -> float:
    return (after[0] - before[0]) / max(1, after[1] - before[1])


def percentiles(latencies_ns: list[int]) -> dict[str, float]:
    """Return p50, p99 and p99.9 in milliseconds; empty without samples."""
    if not latencies_ns:
        return {}
    ordered = sorted(latencies_ns)
    at = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999}
    return {name: ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1e6 for name, share in at.items()}


def run(scenario: Scenario, server: Server, database_url: str, cores: Cores, size: Size, seconds: float) -> list[Row]:
    """Run a scenario in a new process pinned to the load core. Raises RuntimeError with the error of that process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(theirs, scenario, server, database_url, cores, size))
    process.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            raise RuntimeError(f"not finished after {seconds:.0f} s")
        result = ours.recv()
    except EOFError as error:
        raise RuntimeError("the load generator died") from error
    finally:
        ours.close()
        process.join(2)
        process.kill()
        process.join()
    if isinstance(result, str):
        raise RuntimeError(result)
    assert isinstance(result, list)
    return result


def _run(pipe: Connection, scenario: Scenario, server: Server, database_url: str, cores: Cores, size: Size) -> None:
    os.sched_setaffinity(0, {cores.load})
    try:
        source: Source = RawSource(server.port) if server.name == "raw" else Publisher(database_url, cores.postgres)
        with closing(source), closing(Swarm(server.port)) as swarm:
            gc.disable()
            trial = Trial(server, database_url, cores, size, swarm, source)
            rows = scenario(trial)
            if swarm.lost:
                rows[-1].flags.append(f"{len(swarm.lost)} clients lost, first {swarm.lost[0]}")
            pipe.send(rows)
    except Exception:
        pipe.send(traceback.format_exc())
