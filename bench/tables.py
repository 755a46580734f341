"""`python bench/tables.py`: measures live tables with row-level security against the plain channel of the watch."""

import argparse
import json
import multiprocessing
import secrets
import select
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

# `python bench/tables.py` puts bench/ first on the path; make the package `bench` importable instead.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import jwt  # noqa: E402

from bench import log_database, machine  # noqa: E402
from bench.log_database import NODE_ROLE, Cluster, connect, of_node_role  # noqa: E402
from bench.member import Member, read_all  # noqa: E402
from bench.servers import ServerProcess  # noqa: E402
from bench.wire import Conversation, FrameReader, client_frame  # noqa: E402

SECRET = secrets.token_hex(32)
ROWS = 10_000
TENANTS = 20
#: Changes in a transaction: so the rate does not depend on the time of a commit.
TOGETHER = 10
SETTINGS = {
    "JWT_SECRET": SECRET,
    "AUTHORIZATION": "rls",
    "ALLOWED_ROLES": "bench_authenticated",
    "PUBLIC_CHANNELS": "table:*",
    "LIVE_TABLES": "public.*",
    "PERMISSION_RECHECK_SECONDS": "0",
}
CLAIM = "(SELECT current_setting('request.jwt.claims', true)::jsonb ->> '{name}')"
#: The policy of each variant: None for a table without row-level security.
VARIANTS: dict[str, str | None] = {
    "channel": None,
    "table": None,
    "rls, all rows": f"{CLAIM.format(name='tenant')} IS NOT NULL",
    "rls, own rows": f"tenant = {CLAIM.format(name='tenant')}::int",
}
TABLE = """
CREATE TABLE items (
    id int PRIMARY KEY, tenant int NOT NULL, total numeric NOT NULL, note text NOT NULL, t bigint NOT NULL);
INSERT INTO items SELECT n, n % {tenants}, n, repeat('x', 50), 0 FROM generate_series(1, {rows}) AS n;
ANALYZE items;
GRANT SELECT ON items TO bench_authenticated;
SELECT socketio_pg.watch('items');
"""


class Visitor(Member):
    """One of the clients of a tenant. ``sampled``: its events are parsed, and timed."""

    def __init__(self, number: int, port: int, variant: str, sampled: bool) -> None:
        super().__init__(number, port)
        claims = {"sub": "bench", "tenant": number % TENANTS, "role": "bench_authenticated", "exp": time.time() + 3600}
        self.latencies: list[int] | None = [] if sampled else None
        self._channel = variant == "channel"
        self._frames = FrameReader()
        self.events = 0
        channels = ("table:public.items",) if self._channel else ()
        self.begin(Conversation(self, channels, token=jwt.encode(claims, SECRET, "HS256")))

    def subscribed(self) -> bool:
        if self._channel:
            return True
        self.send(client_frame(b'427["subscribe",{"table":"public.items","limit":100}]'))
        return False

    def received(self, data: bytes) -> bool:
        """Return whether the client is live."""
        if b'"ok":false' in data:
            raise ConnectionError(data[:300])
        return b'["live"' in data

    def count(self, data: bytes, now: int) -> None:
        """Count the events in what was read during the measurement."""
        self.events += data.count(b'42["event",')
        if self.latencies is None:
            return
        for text in self._frames.feed(data):
            if text.startswith(b'42["event",'):
                row = json.loads(text[2:])[1]["payload"]["new"]
                if row is not None:
                    self.latencies.append(now - row["t"])


def write(url: str, rate: float, done: Any) -> None:
    """Update ``rate`` rows a second, :data:`TOGETHER` in a transaction, and count them. Runs in its own process."""
    with closing(connect(url)) as connection, connection.cursor() as cursor:
        began = time.monotonic()
        while True:
            rows = [(done.value + n) * 7919 % ROWS + 1 for n in range(TOGETHER)]
            now = time.monotonic_ns()
            cursor.execute(";".join(f"UPDATE items SET total = total + 1, t = {now} WHERE id = {row}" for row in rows))
            done.value += TOGETHER
            time.sleep(max(0.0, began + done.value / rate - time.monotonic()))


@contextmanager
def writing(url: str, rate: float) -> Iterator[Any]:
    """Write while the body runs. Yields the count of changes."""
    done = multiprocessing.Value("q", 0, lock=False)
    process = multiprocessing.Process(target=write, args=(url, rate, done))
    process.start()
    try:
        yield done
    finally:
        process.kill()
        process.join()


def sessions(connection: Any) -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE usename = %s", (NODE_ROLE,))
        return [row[0] for row in cursor.fetchall()]


def cpu_of(pids: list[int]) -> float:
    return sum(machine.process_cpu(pid) for pid in pids)


def read_for(visitors: list[Visitor], seconds: float) -> None:
    """Read what the clients get for some seconds."""
    with select.epoll() as epoll:
        of = {visitor.socket.fileno(): visitor for visitor in visitors}
        for fd in of:
            epoll.register(fd, select.EPOLLIN)
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            for fd, _ in epoll.poll(0.05):
                data = of[fd].socket.recv(1 << 18)
                if not data:
                    raise ConnectionError("the server closed the connection")
                of[fd].count(data, time.monotonic_ns())


def trial(cluster: Cluster, variant: str, clients: int, rate: float, seconds: float, repeat: int) -> dict[str, float]:
    with (
        cluster.database(f"tables_{repeat}") as url,
        closing(connect(url)) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("GRANT USAGE ON SCHEMA socketio_pg TO bench_authenticated")
        cursor.execute("GRANT SELECT, INSERT ON socketio_pg.messages TO bench_authenticated")
        cursor.execute(TABLE.format(rows=ROWS, tenants=TENANTS))
        policy = VARIANTS[variant]
        if policy is not None:
            cursor.execute("ALTER TABLE items ENABLE ROW LEVEL SECURITY")
            cursor.execute(f"CREATE POLICY bench ON items FOR SELECT TO bench_authenticated USING ({policy})")
        with closing(ServerProcess("ours", of_node_role(url), None, **SETTINGS)) as process:
            server = process.start()
            time.sleep(1)
            began, before = time.monotonic(), machine.process_cpu(server.pid)
            visitors = [Visitor(number, server.port, variant, number < TENANTS) for number in range(clients)]
            read_all(visitors)
            values = {"live_s": time.monotonic() - began, "live_server_cpu_s": machine.process_cpu(server.pid) - before}
            with writing(url, rate) as done:
                read_for(visitors, 2.0)
                for visitor in visitors:
                    visitor.events = 0
                    if visitor.latencies is not None:
                        visitor.latencies.clear()
                written, pids = done.value, sessions(connection)
                before, before_postgres = machine.process_cpu(server.pid), cpu_of(pids)
                read_for(visitors, seconds)
                written = done.value - written
                used, used_postgres = machine.process_cpu(server.pid) - before, cpu_of(pids) - before_postgres
            latencies = sorted(one / 1e6 for visitor in visitors for one in visitor.latencies or ())
            values |= {
                "changes_per_s": written / seconds,
                "events_per_change": sum(visitor.events for visitor in visitors) / written,
                "server_cpu": used / seconds,
                "postgres_cpu": used_postgres / seconds,
                "p50_ms": median(latencies),
                "p99_ms": quantiles(latencies, n=100)[98],
            }
            for visitor in visitors:
                visitor.socket.close()
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    machine.raise_file_limit(needed=2 * options.clients + 1000)
    found: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    with log_database.running() as cluster:
        with closing(connect(cluster.url())) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE ROLE bench_authenticated; GRANT bench_authenticated TO {NODE_ROLE}")
        for repeat in range(options.repeats):
            for variant in VARIANTS:
                values = trial(cluster, variant, options.clients, options.rate, options.seconds, repeat)
                found[variant].append(values)
                print(variant, {name: round(value, 3) for name, value in values.items()}, flush=True)
    print(f"\n{options.clients} clients of {TENANTS} claims, {options.rate:g} changes/s, medians of {options.repeats};")
    print("the ratio is that of each to the channel in the same round:")
    for variant, trials in found.items():
        for name in trials[0]:
            value = median(one[name] for one in trials)
            ratio = median(
                one[name] / plain[name] for one, plain in zip(trials, found["channel"], strict=True) if plain[name]
            )
            print(f"{variant:14} {name:18} {value:10.3f}  {ratio:6.2f}")


if __name__ == "__main__":
    main()
