"""Samples of several workers' metrics: how they add up, and the counters of workers that have ended.

    a worker ──► <slot>.counters ── its successor in the slot, before it writes its own ──► ended.counters

So there is one file for each slot, and one for all workers that have ended, however many there were. Each worker has a
generation, which increases within a slot and tells whether `ended` has its counters already: a worker may be killed
between two writes, and nobody waits for a lock to read.
"""

import contextlib
import fcntl
import json
import logging
import operator
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.metrics_core import Metric

from socketio_pg.workers.node import Node

logger = logging.getLogger("socketio_pg.workers")

#: How the values of two workers become one.
Rule = Callable[[float, float], float]
#: The types of metrics that a worker leaves behind.
COUNTERS = ("counter", "histogram")
_SUM: Rule = operator.add
_ENDED = "ended"


@dataclass(slots=True)
class Report:
    """The metrics of one worker."""

    generation: int
    families: list[Metric] = field(default_factory=list)

    def encode(self) -> bytes:
        return json.dumps({"generation": self.generation, "families": _encoded(self.families)}).encode()

    @classmethod
    def decode(cls, text: bytes) -> "Report":
        found = json.loads(text)
        return cls(found["generation"], _decoded(found["families"]))


def merge(parts: Iterable[Iterable[Metric]], rules: Mapping[str, Rule] | None = None) -> list[Metric]:
    """Return the families of all ``parts``: the sum of each sample, or what ``rules`` has for its family's name."""
    rules = rules or {}
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for part in parts:
        for family in part:
            name = family.name
            families.setdefault(name, Metric(name, family.documentation, family.type))
            found = values.setdefault(name, {})
            rule = rules.get(name, _SUM)
            for sample in family.samples:
                key = sample.name, tuple(sample.labels.items())
                if key not in found:
                    found[key] = sample.value
                elif sample.name.endswith("_created"):  # the client library's: when it has begun to count
                    found[key] = min(found[key], sample.value)
                else:
                    found[key] = rule(found[key], sample.value)
    for name, family in families.items():
        for (sample_name, labels), value in values[name].items():
            # Sums depend on the order: without rounding a counter could fall by 1e-14, which looks like a restart.
            family.add_sample(sample_name, dict(labels), round(value, 9))
    return list(families.values())


class CounterFiles:
    """The files of ``node`` with the counters of its workers. A file that cannot be written is logged."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._generation: int | None = None

    @property
    def generation(self) -> int:
        """The generation of this worker. The first look adds its predecessor's counters to those of ended workers."""
        if self._generation is None:
            self._generation = self._succeed()
        return self._generation

    def write(self, families: Iterable[Metric]) -> None:
        """Keep this worker's counters, for when it has ended. Does not yield."""
        kept = [family for family in families if family.type in COUNTERS]
        self._write(str(self._node.slot), Report(self.generation, kept).encode())

    def complete(self, reports: Mapping[int, Report]) -> Iterator[Report]:
        """Yield ``reports``, by slot, and the counters of all workers that are missing there."""
        # Slots first: what a successor moves meanwhile is then found twice, and not missed.
        found = dict(self._others(reports)) | dict(reports)
        upto, families = self._read_ended()
        for slot, report in found.items():
            if report.generation > upto.get(slot, 0):
                yield report
        yield Report(0, families)

    def _others(self, slots: Collection[int]) -> Iterator[tuple[int, Report]]:
        for path in self._node.directory.glob("*.counters"):
            if path.stem.isdecimal() and int(path.stem) not in slots and (text := self._read(path.stem)) is not None:
                yield int(path.stem), Report.decode(text)

    def _succeed(self) -> int:
        slot = self._node.slot
        with _locked(self._node.directory / f"{_ENDED}.lock"):
            upto, families = self._read_ended()
            text = self._read(str(slot))
            before = Report(0) if text is None else Report.decode(text)
            if before.generation > upto.get(slot, 0):
                upto[slot] = before.generation
                ended = {"upto": upto, "families": _encoded(merge([families, before.families]))}
                self._write(_ENDED, json.dumps(ended).encode())
        return upto.get(slot, 0) + 1

    def _read_ended(self) -> tuple[dict[int, int], list[Metric]]:
        text = self._read(_ENDED)
        if text is None:
            return {}, []
        found = json.loads(text)
        return {int(slot): generation for slot, generation in found["upto"].items()}, _decoded(found["families"])

    def _read(self, name: str) -> bytes | None:
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            return None

    def _write(self, name: str, text: bytes) -> None:
        # Replaced in one step: others may be reading it.
        path = self._path(name)
        new = path.with_suffix(".new")
        try:
            new.write_bytes(text)
            new.replace(path)
        except OSError as error:
            logger.warning("the counters of ended workers will be too low: %s", error)

    def _path(self, name: str) -> Path:
        return self._node.directory / f"{name}.counters"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file. Waits without other green threads: for one write of another worker at most."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _encoded(families: Iterable[Metric]) -> list[Any]:
    return [
        [family.name, family.type, family.documentation, [sample[:3] for sample in family.samples]]
        for family in families
    ]


def _decoded(rows: list[Any]) -> list[Metric]:
    families = []
    for name, kind, documentation, samples in rows:
        family = Metric(name, documentation, kind)
        for sample in samples:
            family.add_sample(*sample)
        families.append(family)
    return families
