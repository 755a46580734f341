"""The view Now: the figures of all processes, their sum, and those of PostgreSQL."""

import time
from collections.abc import Sequence
from typing import Any

from socketio_pg.core import green
from socketio_pg.inspector import requests
from socketio_pg.inspector.clock import Clock
from socketio_pg.inspector.database import DatabaseFigures
from socketio_pg.inspector.everywhere import Everywhere
from socketio_pg.inspector.figures import Figures
from socketio_pg.inspector.routes import Routes
from socketio_pg.inspector.samples import COUNT, INTERVAL, NAMES, merge, slot

#: Figures of processes, beside those of the series, that have a total.
_ADDED = (
    "messages_in", "bytes_in", "messages_out", "bytes_out", "published", "replayed", "clients", "subscriptions",
    "live_tables", "slow", "buffered", "replays", "measured", "memory", "cpu",
)  # fmt: skip
_MERGED = ("p50", "p99", "loop_lag", "outbox_age", "outbox_messages")


class Now:
    """Collects the figures. ``seconds``: for the other processes to answer."""

    seconds = 2.0

    def __init__(self, everywhere: Everywhere, figures: Figures, database: DatabaseFigures, clock: Clock) -> None:
        self._everywhere = everywhere
        self._database = database
        self._clock = clock
        everywhere.answer("now", figures.read)

    def add_to(self, routes: Routes) -> None:
        routes.get("now", self._get)

    def _get(self) -> dict[str, Any]:
        """``GET /inspector/api/now``."""
        return self.collect(series=requests.number("history", 1, 0, 1) == 1)

    def collect(self, *, series: bool, seconds: float | None = None) -> dict[str, Any]:
        """Return all figures, as docs/inspector.md describes them, with the series of ten minutes if wanted."""
        last = slot(time.time()) - 1
        reading = green.Event()
        green.run_soon(lambda: reading.send(self._database.read()))
        found = self._everywhere.ask("now", last if series else None, seconds or self.seconds)
        processes, listening = [], dict[str, int]()
        for process, figures in found.answers:
            listening |= figures.pop("listening")
            processes.append({"node": process.name, "worker": process.worker, "since": process.since} | figures)
        processes.sort(key=lambda one: (one["node"], one["worker"] or 0))
        database = dict(reading.wait())
        database["sessions"] = [one | {"channels": listening.get(str(one["pid"]))} for one in database["sessions"]]
        database["listen_channels"] = sum(listening.values())
        database["clock"] = {"offset": self._clock.offset, "uncertainty": self._clock.uncertainty}
        answer = {
            "at": time.time(),
            "processes": processes,
            "unanswered": list(found.unanswered),
            "total": _total(processes, series),
            "database": database,
        }
        if series:
            answer["series"] = {
                "interval": INTERVAL, "count": COUNT, "last": (last + 1) * INTERVAL, "names": list(NAMES),
            }  # fmt: skip
        return answer


def _total(processes: Sequence[dict[str, Any]], series: bool) -> dict[str, Any]:
    """Return the figures of all processes together."""
    weights = [one["measured"] or 0 for one in processes]
    total: dict[str, Any] = {name: sum(one.get(name) or 0 for one in processes) for name in _ADDED}
    for name in _MERGED:
        # Each node that watches the outbox sees the same one.
        total[name] = merge(name if name in NAMES else "outbox_age", [one[name] for one in processes], weights)
    if series:
        total["series"] = {name: [] for name in NAMES}
        for place in range(COUNT):
            counts = [one["series"]["messages_out"][place] or 0 for one in processes]
            for name in NAMES:
                total["series"][name].append(merge(name, [one["series"][name][place] for one in processes], counts))
    return total
