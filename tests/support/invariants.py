"""What must hold after every attack: the process lives, everything is back to where it was, and nobody else noticed."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

from tests.support.clients import SocketClient
from tests.support.patience import PATIENCE
from tests.support.server import ServerProcess

#: Kilobytes that Python and malloc may keep.
MEMORY = 60_000


def state(server: ServerProcess) -> dict[str, Any]:
    """What the server of `watched_app` has in memory."""
    status, text = server.get("/state")
    assert status == 200
    answer: dict[str, Any] = json.loads(text)
    return answer


def longest_stall(server: ServerProcess) -> float:
    """For how many seconds of its CPU the server has let nobody else run since the last time that it was asked."""
    status, text = server.get("/stall")
    assert status == 200
    return float(json.loads(text)["seconds"])


def settled(server: ServerProcess, base: dict[str, Any], seconds: float = PATIENCE) -> None:
    """Until nothing is more than in ``base``; the memory may be."""
    deadline = time.monotonic() + seconds
    while True:
        now = state(server)
        more = {name: (base[name], now[name]) for name in base if name != "kilobytes" and now[name] > base[name]}
        if not more:
            assert now["kilobytes"] < base["kilobytes"] + MEMORY
            return
        assert time.monotonic() < deadline, f"still more than before: {more}"
        time.sleep(0.1)  # another process can only be asked again


@contextlib.contextmanager
def unharmed(server: ServerProcess, channel: str = "attack", *, errors_logged: bool = False) -> Iterator[SocketClient]:
    """An attack on a server of `watched_app` in the body: a client beside it gets all its messages and sees nothing.

    Afterwards the worker is the same, everything is where it was, and the log has no traceback.
    """
    pid, logged = server.worker_pid(), len(server.log)
    with SocketClient(server.url, reconnection=False) as witness:
        witness.subscribe(f"{channel}-witness")
        # With the first one the server opens a connection that it keeps.
        assert witness.call("publish", {"channel": f"{channel}-other", "payload": 0})["ok"]
        base = state(server)
        yield witness
        for number in range(3):
            assert witness.call("publish", {"channel": f"{channel}-witness", "payload": number})["ok"]
        assert [witness.next("event")["payload"] for _ in range(3)] == [0, 1, 2]
        assert witness.pending("event") == witness.pending("error") == witness.pending("disconnect") == 0
        settled(server, base)
        assert server.worker_pid() == pid
        assert state(server)["forged"] == []
    new = server.log[logged:]
    assert errors_logged or "Traceback" not in new, new
    assert len(new) < 20_000, "the attack has filled the log"
