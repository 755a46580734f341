"""The inputs and results of the scenarios of the log's benchmark."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from bench.log_database import CHANNEL, Cluster
from bench.reader import Subscriber
from bench.servers import Server, ServerProcess


@dataclass(frozen=True)
class Size:
    """The size of a run: --quick or normal."""

    rounds: int
    write_seconds: float
    warm_seconds: float
    step_seconds: float
    rates: tuple[int, ...]
    latency_seconds: float
    clients: int
    missed: int


QUICK = Size(1, 3, 1, 3, (2_500, 5_000, 10_000, 20_000), 3, 200, 100_000)
NORMAL = Size(
    3, 4, 2, 8, (2_500, 5_000, 7_500, 10_000, 15_000, 20_000, 30_000, 40_000, 60_000, 80_000), 15, 2_000, 1_000_000
)


@dataclass
class Row:
    """One measured case of one variant. `series` is only written to the JSON; `flags` say why a result is doubtful."""

    case: str
    variant: str
    values: dict[str, float]
    flags: list[str] = field(default_factory=list)
    series: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class Trial:
    """One run of a scenario. `url` is a fresh database with the log. `repeat` rotates the order of the variants."""

    cluster: Cluster
    url: str
    size: Size
    repeat: int

    def in_turn(self, variants: tuple[str, ...]) -> tuple[str, ...]:
        first = self.repeat % len(variants)
        return variants[first:] + variants[:first]


Scenario = Callable[[Trial], list[Row]]


@contextmanager
def node(url: str) -> Iterator[Server]:
    with closing(ServerProcess("ours", url)) as process:
        yield process.start()


@contextmanager
def node_and_subscriber(url: str, timed: bool = False) -> Iterator[tuple[Server, Subscriber]]:
    """Run a single node, which therefore relays, and a client of it that is subscribed to CHANNEL."""
    with node(url) as server, closing(Subscriber(server.port, CHANNEL, timed=timed)) as subscriber:
        yield server, subscriber
