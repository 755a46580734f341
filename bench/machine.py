"""Reads the kernel's figures: cores, CPU time and memory of a process, limits, versions. Linux only."""

import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple


class Cores(NamedTuple):
    """The core of each part. With two cores, the load generator and PostgreSQL share the second."""

    server: int
    load: int
    postgres: int

    def describe(self) -> str:
        return f"server on core {self.server}, load generator on core {self.load}, PostgreSQL on core {self.postgres}"


def choose_cores() -> Cores:
    cores = sorted(os.sched_getaffinity(0))
    return Cores(server=cores[0], load=cores[1 % len(cores)], postgres=cores[2] if len(cores) > 2 else cores[-1])


def on_core(core: int) -> Callable[[], None]:
    """Return a `preexec_fn` that pins the child, and so all processes that it forks, to a core."""
    return lambda: os.sched_setaffinity(0, {core})


def raise_file_limit(needed: int) -> int:
    """Raise the limit of open files to the hard limit (children inherit it). Return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise SystemExit(f"this run needs {needed} open files per process, but the hard limit is {hard} (ulimit -Hn)")
    return hard


def process_cpu(pid: int) -> float:
    """Return the user and system seconds of a process with all its threads.

    Read from the process's CPU clock (clock_getcpuclockid(3)), in nanoseconds; /proc/PID/stat has ticks of 10 ms.
    """
    return time.clock_gettime((~pid << 3) | 2)


def core_busy_ticks(core: int) -> tuple[int, int]:
    """Return the busy ticks and all ticks of a core since boot (proc_stat(5))."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith(f"cpu{core} "):
            ticks = [int(field) for field in line.split()[1:9]]
            return sum(ticks) - ticks[3] - ticks[4], sum(ticks)
    raise LookupError(f"no core {core} in /proc/stat")


def busy_ticks() -> tuple[int, int]:
    """Return the busy ticks and all ticks of all cores since boot."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def wait_until_idle(share: float, seconds: float) -> float:
    """Wait up to `seconds` until the machine is busy for less than `share` of two seconds. Return the last share.

    Other processes affect every figure of a benchmark that uses the whole machine.
    """
    deadline = time.monotonic() + seconds
    while True:
        busy, ticks = busy_ticks()
        time.sleep(2)
        busy_now, ticks_now = busy_ticks()
        found = (busy_now - busy) / max(1, ticks_now - ticks)
        if found < share or time.monotonic() > deadline:
            return found


def memory(pid: int) -> dict[str, float]:
    """Return RSS and PSS in KB."""
    values: dict[str, float] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Rss", "Pss"):
            values[name.lower()] = float(rest.split()[0])
    return values


def peak_memory(pid: int) -> float:
    """Return the highest RSS in KB since the start of the process or `reset_peak_memory`."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def reset_peak_memory(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def describe() -> dict[str, str]:
    """Return the machine and the versions with which the figures are measured."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    described = {
        "cpu": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": str(os.cpu_count()),
        "memory_gb": str(round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)),
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "node": subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout.strip(),
    }
    packages = (
        "Flask-SocketIO",
        "python-socketio",
        "python-engineio",
        "eventlet",
        "gevent",
        "gunicorn",
        "psycopg2-binary",
    )
    for name in packages:
        try:
            described[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            described[name] = "not installed"
    return described
