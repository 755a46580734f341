"""Measures a mass reconnect: 2,000 clients after their server was killed or their connections were cut."""

import gc
import socket
import time
from contextlib import ExitStack, closing
from typing import Any

from bench.log_database import CHANNEL, connect, of_node_role, one, payload, relay_backend, wait_until_relayed
from bench.log_trial import Row, Trial, node
from bench.machine import process_cpu
from bench.member import Member, read_all
from bench.publisher import MARKER
from bench.servers import Server, ServerProcess
from bench.wire import Conversation, Handshake

SPREAD = 10
"""The clients' positions differ by up to this many in both directions, so they missed 90 to 110 messages."""
MISSED = 100


class _Resubscription(Conversation):
    """Records when the subscription was requested."""

    asked = 0.0

    def _subscribe(self) -> Handshake:
        self.asked = time.monotonic()
        return super()._subscribe()


class Returner(Member):
    """One client that reconnects after the position `after` and expects all messages up to `head`.

    It only counts messages while the clock runs; `check` verifies them afterwards.
    """

    def __init__(self, number: int, port: int, epoch: str, after: int, head: int) -> None:
        super().__init__(number, port)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.caught_up = 0.0
        self._expected = list(range(after + 1, head + 1))
        self._count = 0
        self._data: list[bytes] = []
        self.conversation = _Resubscription(self, (CHANNEL,), {"epoch": epoch, "position": after})
        self.begin(self.conversation)

    def subscribed(self) -> bool:
        return self._counted(b"".join(self.conversation.rest()[0]))

    def received(self, data: bytes) -> bool:
        self._data.append(data)
        return self._counted(data)

    def _counted(self, data: bytes) -> bool:
        self._count += data.count(MARKER)
        if self._count >= len(self._expected) and not self.caught_up:
            self.caught_up = time.monotonic()
            return True
        return False

    def check(self) -> str | None:
        """Return what is wrong with the received messages; None when each arrived once, in order."""
        texts, frames = self.conversation.rest()
        texts += frames.feed(b"".join(self._data))
        events = [text for text in texts if text.startswith(b'42["event",')]
        positions = [int(text.rpartition(b'"position":')[2].partition(b",")[0]) for text in events]
        if not any(b'"recovered":true' in text for text in texts):
            return "not recovered"
        return None if positions == self._expected else f"expected {len(self._expected)}, got {len(positions)}"


def herd(trial: Trial) -> list[Row]:
    """Disconnect the clients in three ways while 100 messages are published; another node keeps running and relays.

    Counts the queries that the clients' node sends about the log, from its start (after a kill; before that it sends
    none) until all clients have caught up. PostgreSQL writes each statement to its log file (`log_statement`).
    """
    rows: list[Row] = []
    trial.cluster.log_statements(True)
    with ExitStack() as stack:
        stack.callback(trial.cluster.log_statements, False)
        stack.enter_context(node(trial.url))
        with closing(connect(trial.url)) as connection:
            relay_backend(connection)
        process = stack.enter_context(closing(ServerProcess("ours", of_node_role(trial.url))))
        cases = (("killed, all missed 100", True, 0), ("killed, missed 90 to 110", True, SPREAD))
        for case, kill, spread in (*cases, ("cut, missed 90 to 110", False, SPREAD)):
            rows.append(_reconnect(trial, process, case, kill, spread))
            process.stop()
    return rows


def _reconnect(trial: Trial, process: ServerProcess, case: str, kill: bool, spread: int) -> Row:
    server = process.start()
    with closing(connect(trial.url)) as connection:
        epoch = str(one(connection, "SELECT epoch::text FROM socketio_pg.head"))
        base = _publish(connection, 2 * spread)
        away = [Returner(number, server.port, epoch, base, base) for number in range(trial.size.clients)]
        read_all(away)
        if kill:
            process.kill()
        for member in away:
            member.socket.close()
        newest = _publish(connection, MISSED - spread)
    offset = trial.cluster.log_size()
    if kill:
        server = process.start()
    return _measure(trial, server, case, offset, (epoch, base, newest, spread))


def _publish(connection: Any, messages: int) -> int:
    """Publish each message in its own transaction. Return the newest position when all have one."""
    with connection.cursor() as cursor:
        for number in range(messages):
            cursor.execute("SELECT socketio_pg.publish(%s, %s)", (CHANNEL, payload(str(100_000_000 + number))))
    return wait_until_relayed(connection, 10.0)


def _measure(trial: Trial, server: Server, case: str, offset: int, log: tuple[str, int, int, int]) -> Row:
    epoch, base, newest, spread = log
    time.sleep(1)
    before, own, began = process_cpu(server.pid), time.process_time(), time.monotonic()
    gc.disable()
    members = [
        Returner(number, server.port, epoch, base - number % (2 * spread + 1), newest)
        for number in range(trial.size.clients)
    ]
    read_all(members)
    gc.enable()
    first = min(member.conversation.asked for member in members)
    last = max(member.caught_up for member in members)
    cpu, own = process_cpu(server.pid) - before, time.process_time() - own
    statements = trial.cluster.statements_since(offset)
    each = sorted(member.caught_up - member.conversation.asked for member in members)
    row = Row(
        case,
        "log",
        {
            "caught_up_s": last - first,
            "from_connect_s": last - began,
            "client_p50_s": each[len(each) // 2],
            "node_cpu_s": cpu,
            "node_cpu_ms": 1000 * cpu / len(members),
            "clients_cpu_s": own,
            "log_queries": sum("socketio_pg.log" in statement for statement in statements),
            "all_statements": len(statements),
        },
    )
    faults = [fault for member in members if (fault := member.check())]
    if faults:
        row.flags.append(f"{len(faults)} clients did not get the messages that they missed, first: {faults[0]}")
    for member in members:
        member.socket.close()
    return row
