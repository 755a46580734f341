"""Invariants after every attack: the process runs, its state is unchanged, and other clients were not affected."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

from tests.support.clients import SocketClient
from tests.support.patience import PATIENCE
from tests.support.server import ServerProcess

#: Kilobytes that Python and malloc may retain.
MEMORY = 60_000
#: Green threads, and descriptors, that a worker starts when it gets its first client, later than the other workers.
FIRST_CLIENT = 2
#: Most bytes that an attack may add to the log, and further ones for each second: tracebacks, one a second.
LOG_BYTES, LOG_BYTES_PER_SECOND = 20_000, 2_000


def state(server: ServerProcess) -> dict[str, Any]:
    """Return the state in the memory of a server of `watched_app`."""
    status, text = server.get("/state")
    assert status == 200
    answer: dict[str, Any] = json.loads(text)
    return answer


def longest_stall(server: ServerProcess) -> float:
    """Return the longest time, in CPU seconds, that the server did not yield since the last call."""
    status, text = server.get("/stall")
    assert status == 200
    return float(json.loads(text)["seconds"])


def settled(server: ServerProcess, base: dict[str, Any], seconds: float = PATIENCE) -> None:
    """Wait until no value is higher than in ``base``, except the memory and :data:`FIRST_CLIENT`."""
    deadline = time.monotonic() + seconds
    parts = FIRST_CLIENT * (len(server.worker_pids()) - 1)
    most = base | {name: base[name] + parts for name in ("green", "descriptors")}
    while True:
        now = state(server)
        more = {name: (base[name], now[name]) for name in base if name != "kilobytes" and now[name] > most[name]}
        if not more:
            assert now["kilobytes"] < base["kilobytes"] + MEMORY
            return
        assert time.monotonic() < deadline, f"still more than before: {more}; now {now}, before {base}"
        time.sleep(0.1)  # another process can only be polled


@contextlib.contextmanager
def unharmed(server: ServerProcess, channel: str = "attack", *, errors_logged: bool = False) -> Iterator[SocketClient]:
    """Run an attack on a server of `watched_app` in the body. Assert that another client is not affected by it.

    Afterwards the workers must be the same, its state unchanged, and the log without traceback.
    """
    pids, logged, began = server.worker_pids(), len(server.log), time.monotonic()
    with SocketClient(server.url, reconnection=False) as witness:
        witness.subscribe(f"{channel}-witness")
        # The first publish opens a persistent connection to the database.
        assert witness.call("publish", {"channel": f"{channel}-other", "payload": 0})["ok"]
        base = state(server)
        yield witness
        for number in range(3):
            assert witness.call("publish", {"channel": f"{channel}-witness", "payload": number})["ok"]
        assert [witness.next("event")["payload"] for _ in range(3)] == [0, 1, 2]
        assert witness.pending("event") == witness.pending("error") == witness.pending("disconnect") == 0
        settled(server, base)
        assert server.worker_pids() == pids
        assert state(server)["forged"] == []
    new = server.log[logged:]
    assert errors_logged or "Traceback" not in new, new
    # Some are logged once a second, so that an attack that takes longer may log more.
    most = LOG_BYTES + LOG_BYTES_PER_SECOND * (time.monotonic() - began)
    assert len(new) < most, f"the attack has filled the log: {len(new)} bytes"
