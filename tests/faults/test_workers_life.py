"""The life of workers: signals to gunicorn and to workers, recycling, --preload, a directory that something removes."""

import contextlib
import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.clients import SocketClient
from tests.support.log import Log
from tests.support.patience import until
from tests.support.policies import RLS, PolicyDatabase
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess
from tests.support.swarm import Swarm
from tests.support.tokens import mint
from tests.support.workers import APP, Load, load_on


def directory_of(server: ServerProcess) -> Path:
    """Return the directory of the node."""
    links = []
    for pid in server.worker_pids():
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                links.append(str(fd.readlink()))
    found = {match[1] for link in links if (match := re.match(r"(/tmp/socketio-pg-[^/]*)/leader$", link))}
    assert len(found) == 1, links
    return Path(found.pop())


def wait_new_workers(server: ServerProcess, before: list[int]) -> None:
    """Wait until there are as many workers as ``before``, and none of these."""
    until(lambda: len(server.worker_pids()) == len(before), "gunicorn has its workers")
    until(lambda: not set(before) & set(server.worker_pids()), "all workers are new")
    until(lambda: len(server.worker_pids()) == len(before), "gunicorn has its workers again")
    server.wait_ready()


# -- under load: nothing is lost in silence ----------------------------------------------------------------------------


def reload(load: Load) -> None:
    before = load.server.worker_pids()
    load.server.process.send_signal(signal.SIGHUP)
    wait_new_workers(load.server, before)


def more_and_fewer(load: Load) -> None:
    (first, second) = load.server.worker_pids()
    load.server.process.send_signal(signal.SIGTTIN)
    until(lambda: len(load.server.worker_pids()) == 3, "there is one worker more")
    load.server.wait_ready()
    for number in (2, 1):  # gunicorn ends the oldest ones
        load.server.process.send_signal(signal.SIGTTOU)
        until(lambda number=number: len(load.server.worker_pids()) == number, "there is one worker fewer")  # type: ignore[misc]
        load.server.wait_ready()
    assert not {first, second} & set(load.server.worker_pids())
    load.server.process.send_signal(signal.SIGTTIN)
    until(lambda: len(load.server.worker_pids()) == 2, "there are two workers again")


def end_listening(load: Load) -> None:
    load.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'socketio_pg listen%'")
    load.server.wait_ready()


def replace_directory(server: ServerProcess) -> None:
    """Remove the directory of the node, and wait until new workers have made it again."""
    before, directory = server.worker_pids(), directory_of(server)
    shutil.rmtree(directory)
    wait_new_workers(server, before)
    assert directory_of(server) == directory


def remove_directory(load: Load) -> None:
    replace_directory(load.server)


def kill_leading(load: Load) -> None:
    victim = load.server.leading_pid()
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    until(lambda: victim not in load.server.worker_pids(), "the worker has ended")


def stop(load: Load, victim: int) -> None:
    """Stop a worker until gunicorn kills it, after its --timeout."""
    os.kill(victim, signal.SIGSTOP)
    until(lambda: victim not in load.server.worker_pids(), "gunicorn has killed the worker")


def stop_leading(load: Load) -> None:
    victim = load.server.leading_pid()
    assert victim is not None
    stop(load, victim)


def stop_following(load: Load) -> None:
    (victim,) = set(load.server.worker_pids()) - {load.server.leading_pid()}
    assert victim is not None
    stop(load, victim)


def recycle_by_requests(load: Load) -> None:
    before = set(load.server.worker_pids())
    until(lambda: not before & set(load.server.worker_pids()), "all workers have had --max-requests")


EVENTS: list[tuple[Callable[[Load], None], tuple[str, ...]]] = [
    (reload, ()),
    (more_and_fewer, ()),
    (end_listening, ()),
    (remove_directory, ()),
    (kill_leading, ("--preload",)),
    (reload, ("--preload",)),
    (recycle_by_requests, ("--max-requests", "400", "--max-requests-jitter", "200")),
    (stop_leading, ("--timeout", "3")),
    (stop_following, ("--timeout", "3")),
]


@pytest.mark.nightly  # `make test` has the same load while workers are killed, in test_workers
@pytest.mark.parametrize(("event", "options"), EVENTS, ids=lambda value: str(value)[:30])
def test_nothing_is_lost_in_silence(
    newest_pg: Cluster, event: Callable[[Load], None], options: tuple[str, ...], load_pause: float
) -> None:
    log = Log(newest_pg, "workers_life", "-w", "2", *options, app=APP, AUTO_INIT="1")
    try:
        with load_on(log.server, log.url, load_pause) as load:
            load.spread()
            event(load)
            load.wait_heard(time.monotonic(), load.watchers)
            load.spread()
            load.wait_heard(time.monotonic(), load.watchers)
            assert load.finish() == []
            print(load.figures())
    finally:
        print(log.server.log)
        log.server.close()


# -- without load ------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(newest_pg: Cluster) -> Iterator[ServerProcess]:
    made = ServerProcess(newest_pg.url(), "-w", "2", app=APP, DRAIN_SECONDS="0.5")
    yield made
    made.close()


def test_three_workers_have_as_many_connections_as_one_and_two_more_each(newest_pg: Cluster) -> None:
    database = PolicyDatabase(newest_pg, "workers_connections")
    database.join("alice", "room", writes=True)
    url = f"{database.server_url}&application_name=counted"
    server = ServerProcess(url, "-w", "3", app=APP, **RLS)
    clients: list[SocketClient] = []
    try:
        workers: set[int] = set()
        while workers < set(server.worker_pids()):
            clients.append(SocketClient(server.url, auth={"token": mint(sub="alice", role="authenticated")}))
            workers.add(clients[-1].call("pid"))
        for client in clients:
            assert client.call("subscribe", {"channel": "room", "history": 5})["ok"]
            for durable in (True, False):
                assert client.call("publish", {"channel": "room", "payload": 1, "durable": durable})["ok"]
        rows = newest_pg.sql(
            "SELECT split_part(split_part(application_name, ' ', 2), ':', 1), count(*)::int FROM pg_stat_activity"
            " WHERE application_name LIKE '%: counted' GROUP BY 1"
        )
        one_for_all = dict.fromkeys(("listen", "publish", "relay", "backlog", "keys"), 1)
        assert dict(rows) == one_for_all | {"history": 3, "policies": 3}
    finally:
        for client in clients:
            client.close()
        server.close()


def test_workers_whose_directory_is_removed_are_replaced(server: ServerProcess, channel: str) -> None:
    replace_directory(server)
    with SocketClient(server.url) as client, SocketClient(server.url) as other:  # one of each worker
        client.subscribe(channel)
        assert other.call("publish", {"channel": channel, "payload": 1})["ok"]
        assert client.next("event")["payload"] == 1


def is_running(pid: int) -> bool:
    """Return whether a process runs: not if it has ended and nobody has noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.green
def test_workers_end_with_a_killed_master_and_the_next_one_starts_at_the_same_port(server: ServerProcess) -> None:
    with Swarm("127.0.0.1", server.port) as swarm:
        clients = swarm.connect(20)
        pids, directory = server.worker_pids(), directory_of(server)
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        swarm.run_until(lambda: all(client.closed for client in clients))
    until(lambda: not any(map(is_running, pids)), "the workers have ended")
    server.start()
    assert not directory.exists()
    assert len(server.worker_pids()) == 2


@pytest.mark.green
def test_sigterm_drains_all_workers_and_removes_the_directory(server: ServerProcess) -> None:
    with Swarm("127.0.0.1", server.port) as swarm:
        clients = swarm.connect(40)
        directory = directory_of(server)
        server.process.send_signal(signal.SIGTERM)
        swarm.run_until(lambda: all(client.closed for client in clients))
        # Each was told, on the level at which it comes back by itself.
        assert {client.close_code for client in clients} != {None}
    server.process.wait()
    assert not directory.exists()


@pytest.mark.green
def test_a_worker_without_descriptors_gets_no_more_connections(server: ServerProcess) -> None:
    until(server.leading_pid, "a worker leads")
    (following,) = set(server.worker_pids()) - {server.leading_pid()}
    used = {int(fd.name) for fd in Path(f"/proc/{following}/fd").iterdir()}
    before = resource.prlimit(following, resource.RLIMIT_NOFILE)
    none = next(number for number in range(len(used) + 1) if number not in used)
    resource.prlimit(following, resource.RLIMIT_NOFILE, (none, before[1]))
    with Swarm("127.0.0.1", server.port) as swarm:
        for _ in range(60):
            swarm.open(1)
            swarm.run_until(lambda: swarm.clients[-1].connected or swarm.clients[-1].closed)
        lost = sum(client.closed for client in swarm.clients)
        # As long as it takes until the other worker knows.
        assert 0 < lost < 20
        assert "this process has too many descriptors" in server.log
        resource.prlimit(following, resource.RLIMIT_NOFILE, before)

        def serves() -> bool:
            with SocketClient(server.url) as client:
                return bool(client.call("pid") == following)

        until(serves, "the worker gets connections again")
        assert sum(client.closed for client in swarm.clients) == lost


#: Bytes that are sent to a stopped worker, and by how much the memory of another may grow, which keeps 64 MB.
FLOOD, KEPT = 150_000_000, 150_000_000


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.nightly
def test_messages_for_a_stopped_worker_fill_no_memory(newest_pg: Cluster, channel: str) -> None:
    server = ServerProcess(newest_pg.url(), "-w", "2", "--timeout", "600", app=APP, DRAIN_SECONDS="0.5")
    try:
        until(server.leading_pid, "a worker leads")
        leading = server.leading_pid()
        assert leading is not None
        (following,) = set(server.worker_pids()) - {leading}
        with Swarm("127.0.0.1", server.port) as swarm:
            os.kill(following, signal.SIGSTOP)
            (client,) = swarm.open(1)
            swarm.run_until(lambda: client.connected)
            client.emit("subscribe", {"channel": channel})
            swarm.run_until(lambda: bool(client.events("subscribed")))
            before, most = _resident(leading), 0
            for _ in range(FLOOD // 7_000_000):
                client.packets.clear()
                newest_pg.sql(
                    "SELECT pg_notify(%s, to_jsonb(repeat('x', 6990) || n)::text) FROM generate_series(0, 999) AS n",
                    channel,
                )
                swarm.run_until(lambda: len(client.packets) == 1000)
                most = max(most, _resident(leading) - before)
        print(f"{most / 1e6:.1f} MB more")
        assert most < KEPT
        assert "does not read" in server.log
        os.kill(following, signal.SIGCONT)
        server.wait_ready()
    finally:
        server.close()
