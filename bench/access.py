"""`python bench/access.py`: measures tokens and row-level security when all clients reconnect at the same time."""

import argparse
import secrets
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

# `python bench/access.py` puts bench/ first on the path; make the package `bench` importable instead.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import jwt  # noqa: E402

from bench import log_database, machine  # noqa: E402
from bench.log_database import NODE_ROLE, Cluster, connect, of_node_role  # noqa: E402
from bench.member import Member, read_all  # noqa: E402
from bench.servers import ServerProcess  # noqa: E402
from bench.wire import Conversation  # noqa: E402

SECRET = secrets.token_hex(32)
ROOMS = 100
TOKENS = {"JWT_SECRET": SECRET}
VARIANTS: dict[str, dict[str, str]] = {
    "no tokens": {},
    "tokens": TOKENS,
    "claims": TOKENS | {"AUTHORIZATION": "claims"},
    # Rechecks only on request, so that they can be measured separately.
    "rls": TOKENS | {"AUTHORIZATION": "rls", "ALLOWED_ROLES": "bench_authenticated", "PERMISSION_RECHECK_SECONDS": "0"},
}
POLICIES = """
CREATE TABLE members (user_id text, room text, PRIMARY KEY (user_id, room));
GRANT SELECT ON members TO bench_authenticated;
INSERT INTO members SELECT 'user-' || n, 'room:' || n % {rooms} FROM generate_series(0, {clients} - 1) AS n;
ANALYZE members;
GRANT USAGE ON SCHEMA socketio_pg TO bench_authenticated;
GRANT SELECT, INSERT ON socketio_pg.messages TO bench_authenticated;
CREATE POLICY own ON socketio_pg.messages FOR SELECT TO bench_authenticated
    USING (channel = 'user:' || (SELECT current_setting('request.jwt.claims', true)::jsonb ->> 'sub'));
CREATE POLICY rooms ON socketio_pg.messages FOR SELECT TO bench_authenticated
    USING (EXISTS (SELECT FROM members
        WHERE user_id = (SELECT current_setting('request.jwt.claims', true)::jsonb ->> 'sub')
            AND room = (SELECT socketio_pg.channel())));
"""


class Visitor(Member):
    """One client with its own token, subscribed to its own channel and to a room."""

    def __init__(self, number: int, port: int) -> None:
        super().__init__(number, port)
        own, room = f"user:user-{number}", f"room:{number % ROOMS}"
        self.begin(Conversation(self, (own, room), token=token(number, own, room)))

    def subscribed(self) -> bool:
        return True

    def received(self, data: bytes) -> bool:
        return False


def token(number: int, own: str, room: str) -> str:
    claims = {
        "sub": f"user-{number}",
        "role": "bench_authenticated",
        "subscribe": [own, room],
        "iat": int(time.time()),
        "exp": int(time.time()) + 3600,
    }
    return jwt.encode(claims, SECRET, "HS256")


def connect_all(clients: int, port: int) -> tuple[list[Visitor], float]:
    """Connect all clients at the same time. Return them, and the seconds until the last one is subscribed."""
    began = time.monotonic()
    visitors = [Visitor(number, port) for number in range(clients)]
    read_all(visitors)
    return visitors, time.monotonic() - began


def backends(connection: Any) -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE usename = %s", (NODE_ROLE,))
        return [row[0] for row in cursor.fetchall()]


def cpu_of(processes: Sequence[int]) -> float:
    return sum(machine.process_cpu(pid) for pid in processes)


def trial(cluster: Cluster, variant: str, clients: int, repeat: int) -> dict[str, float]:
    """Measure a freshly started server to which all clients reconnect with a new token."""
    with (
        cluster.database(f"access_{repeat}") as url,
        closing(connect(url)) as connection,
        connection.cursor() as cursor,
        closing(ServerProcess("ours", of_node_role(url), None, **VARIANTS[variant])) as process,
    ):
        cursor.execute(POLICIES.format(rooms=ROOMS, clients=clients))
        server = process.start()
        time.sleep(1)
        before = machine.process_cpu(server.pid)
        visitors, seconds = connect_all(clients, server.port)
        values = {
            "subscribed_s": seconds,
            "server_cpu_s": machine.process_cpu(server.pid) - before,
            # These backends were started in this trial, so all their CPU time belongs to it.
            "postgres_cpu_s": cpu_of(backends(connection)),
            "connections": float(len(backends(connection))),
        }
        if variant == "rls":
            values |= recheck(connection, server.pid)
        for visitor in visitors:
            visitor.socket.close()
    return values


def recheck(connection: Any, pid: int) -> dict[str, float]:
    """Measure the CPU time of one check of all subscriptions, until the server has been idle for a second."""
    pids = [pid, *backends(connection)]
    before = [machine.process_cpu(one) for one in pids]
    last, quiet = sum(before), time.monotonic()
    with connection.cursor() as cursor:
        cursor.execute("SELECT socketio_pg.recheck()")
    while time.monotonic() < quiet + 1:
        time.sleep(0.1)
        now = cpu_of(pids)
        if now > last + 0.01:
            last, quiet = now, time.monotonic()
    after = [machine.process_cpu(one) for one in pids]
    used = [late - early for early, late in zip(before, after, strict=True)]
    return {"recheck_server_cpu_s": used[0], "recheck_postgres_cpu_s": sum(used[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    machine.raise_file_limit(needed=2 * options.clients + 1000)
    found: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    with log_database.running() as cluster:
        with closing(connect(cluster.url())) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE ROLE bench_authenticated; GRANT bench_authenticated TO {NODE_ROLE}")
        for repeat in range(options.repeats):
            for variant in VARIANTS:
                busy = machine.wait_until_idle(0.1, 30)
                found[variant].append(trial(cluster, variant, options.clients, repeat))
                print(f"{repeat + 1}/{options.repeats} {variant} {found[variant][-1]} busy before: {busy:.0%}")
    print(f"\n{options.clients} clients, 2 channels each, medians of {options.repeats} (and lowest to highest):")
    for variant, trials in found.items():
        for name in trials[0]:
            values = sorted(one[name] for one in trials)
            print(f"{variant:10} {name:24} {median(values):8.2f}   {values[0]:.2f} to {values[-1]:.2f}")


if __name__ == "__main__":
    main()
