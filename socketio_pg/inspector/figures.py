"""The figures of this process: a sample each five seconds, and more while somebody looks."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from socketio_pg.core import green, metrics
from socketio_pg.core.metrics import fan_out
from socketio_pg.engine.stream import StreamConnection
from socketio_pg.gateway.admission import Admission
from socketio_pg.gateway.live_tables import LiveTables
from socketio_pg.inspector.clock import Clock
from socketio_pg.inspector.latency import Latencies, Measured, Sent, quantiles
from socketio_pg.inspector.samples import Samples, Value, rounded, slot
from socketio_pg.log.backlog import Backlog
from socketio_pg.log.relay import Relay
from socketio_pg.postgres.listener import ChannelListener
from socketio_pg.protocol.server import Server
from socketio_pg.pubsub.pubsub import PubSub
from socketio_pg.version import __version__

#: Connections that are visited before other green threads run.
SLICE = 1_000
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MEMORY = Path("/proc/self/statm")


@dataclass(frozen=True, slots=True)
class Sources:
    """The parts that the figures are read from.

    ``streams()`` yields the connections of Server-Sent Events, ``health()`` returns the problem of each part, None
    for a healthy one, ``listener()`` the listener of this process, and ``leads()`` whether it has the parts of which a
    node has one.
    """

    server: Server
    streams: Callable[[], Iterable[StreamConnection]]
    pubsub: PubSub
    relay: Relay
    backlog: Backlog
    tables: LiveTables
    admission: Admission
    health: Callable[[], Mapping[str, str | None]]
    listener: Callable[[], ChannelListener]
    leads: Callable[[], bool]


class _Counts(NamedTuple):
    """The counts up to a time (monotonic)."""

    at: float
    messages_in: float
    bytes_in: float
    messages_out: float
    bytes_out: float
    published: float
    replayed: float
    cpu: float

    def rates(self, before: "_Counts") -> dict[str, float]:
        """Return what was counted per second since ``before``."""
        seconds = max(0.001, self.at - before.at)
        return {name: max(0.0, self[n] - before[n]) / seconds for n, name in enumerate(self._fields) if n}


class Figures:
    """The figures of this process."""

    #: Seconds between two looks at the event loop, which also take samples when one is due.
    tick = 1.0
    #: Seconds for which rates are counted each second after somebody has looked.
    linger = 5.0

    def __init__(self, sources: Sources, clock: Clock, sent: Sent) -> None:
        self._sources = sources
        self._clock = clock
        self._sent = sent
        self._latencies = Latencies(sent)
        sources.pubsub.add_receiver(self._latencies)
        self._samples = Samples()
        self._worker = green.Worker()
        self._looked_until = 0.0
        #: What was measured in the last ticks: five, as in a sample.
        self._measured: list[Measured] = []
        self._lags: list[float] = []
        self._rates: dict[str, float] = {}
        self._before: _Counts | None = None
        self._sampled: _Counts | None = None

    def start(self) -> None:
        """Start to take samples. Call it after a fork, not before."""
        self._before = self._sampled = self._counts()
        self._worker.start(self._run)

    def stop(self) -> None:
        """Stop taking samples."""
        self._worker.stop()

    # -- for those who look --------------------------------------------------------------------------------------------

    def read(self, last: int | None) -> dict[str, Any]:
        """Return the figures, as docs/inspector.md describes them. May wait for the database's clock.

        ``last``: also the series up to this slot. ``listening``: PostgreSQL's process id of each connection that
        listens, with the number of its channels.
        """
        now = time.monotonic()
        if now > self._looked_until and self._sampled is not None:
            self._turn_rates()
        self._looked_until = now + self.linger
        self._clock.look()
        found = self._describe() | self._describe_connections()
        if last is not None:
            found["series"] = self._samples.series(last, self._clock.offset)
        return found

    def _describe(self) -> dict[str, Any]:
        sources = self._sources
        hub, reading = sources.pubsub.hub, sources.backlog.reading
        p50, p99 = self._latest()
        offset = self._clock.offset
        listener = sources.listener()
        rates = {name: rounded(name, value) for name, value in self._rates.items()}
        return rates | {
            "version": __version__,
            "pid": os.getpid(),
            "leader": sources.relay.leading,
            "listens": sources.leads(),
            "draining": sources.admission.draining,
            "clients": self._clients(),
            "subscriptions": self._subscriptions(),
            "live_tables": sources.tables.count,
            "channels": hub.channel_count - len(hub.patterns),
            "patterns": len(hub.patterns),
            "p50": None if p50 is None or offset is None else rounded("p50", max(0.0, p50 + offset)),
            "p99": None if p99 is None or offset is None else rounded("p99", max(0.0, p99 + offset)),
            "measured": sum(one.messages for one in self._measured),
            "loop_lag": rounded("loop_lag", max(self._lags, default=0.0)),
            "memory": _memory(),
            "outbox_messages": None if reading is None else reading.outbox_messages,
            "outbox_age": None if reading is None else reading.outbox_age,
            "notify_queue": None if reading is None else reading.queue_usage,
            "replays": hub.count_held(),
            "problems": {part: str(problem) for part, problem in sources.health().items() if problem is not None},
            "listening": {str(pid): channels for pid, channels in listener.backends.items()},
        }

    def _describe_connections(self) -> dict[str, Any]:
        connections = {"websocket": 0, "polling": 0, "stream": 0}
        slow = buffered = 0
        for number, socket in enumerate(list(self._sources.server.eio.sockets.values()), 1):
            waits = 0 if socket.connection is None else socket.connection.buffered
            connections["polling" if socket.connection is None else "websocket"] += 1
            slow += waits > 0
            buffered += waits
            if number % SLICE == 0:
                green.sleep()
        for stream in self._sources.streams():
            connections["stream"] += 1
            slow += stream.buffered > 0
            buffered += stream.buffered
        return {"connections": connections, "slow": slow, "buffered": buffered}

    def _latest(self) -> tuple[Value, Value]:
        found = quantiles(self._measured, 0.5, 0.99)
        return (None, None) if found is None else (found[0], found[1])

    # -- samples -------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        number = slot(time.time())
        while True:
            due = time.monotonic() + self.tick
            green.sleep(self.tick)
            now = time.monotonic()
            self._lags = [*self._lags[-4:], max(0.0, now - due)]
            self._measured = [*self._measured[-4:], self._latencies.take()]
            if now < self._looked_until:
                self._turn_rates()
            present = slot(time.time())
            if present != number:
                self._take_sample(present - 1)
                number = present

    def _turn_rates(self) -> None:
        """Count the rates since the last second, or since the last sample when nobody has looked."""
        counts = self._counts()
        before = self._before if self._before is not None and counts.at - self._before.at < 2.5 else self._sampled
        if before is not None and counts.at - before.at >= 0.25:
            self._rates = counts.rates(before)
            self._before = counts

    def _take_sample(self, number: int) -> None:
        counts, reading = self._counts(), self._sources.backlog.reading
        rates = counts.rates(self._sampled or counts)
        self._sampled = counts
        p50, p99 = self._latest()
        self._samples.add(
            number,
            (
                rates["messages_in"], rates["bytes_in"], rates["messages_out"], rates["bytes_out"], rates["published"],
                self._clients(), self._subscriptions(), self._sources.tables.count, p50, p99,
                max(self._lags, default=0.0), None if reading is None else reading.outbox_age,
                self._sources.pubsub.hub.count_held(), rates["replayed"], rates["cpu"],
            ),
        )  # fmt: skip

    def _counts(self) -> _Counts:
        return _Counts(
            time.monotonic(),
            fan_out.notify_messages + fan_out.log_messages,
            self._latencies.bytes,
            self._sent.events,
            self._sent.bytes,
            metrics.total(metrics.commit_messages),
            metrics.total(metrics.replayed_messages),
            time.process_time(),
        )

    def _clients(self) -> int:
        """Return the number of clients, without subscriptions of the program itself, such as those of the inspector."""
        pubsub = self._sources.pubsub
        return max(0, len(pubsub.hub) - pubsub.local_count)

    def _subscriptions(self) -> int:
        """Return the number of subscriptions of clients to channels, patterns and live tables."""
        pubsub = self._sources.pubsub
        return max(0, pubsub.hub.subscription_count - pubsub.local_count) + self._sources.tables.count


def _memory() -> int | None:
    """Return the resident memory of this process in bytes; None where the system does not tell."""
    try:
        return int(_MEMORY.read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return None
