"""`python -m tests.fuzz`: strangers' input, minute after minute, each round with a seed that repeats it."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.support import fuzzing
from tests.support.clients import SocketClient
from tests.support.invariants import unharmed
from tests.support.postgres import cluster
from tests.support.server import ServerProcess


def run(server: ServerProcess, number: int, examples: int) -> int:
    """One round; returns how many messages were acknowledged.

    Raises AssertionError, with the smallest input that does it, when something does not hold.
    """

    def rule(**strategies: st.SearchStrategy[object]) -> Callable[[Callable[..., None]], Callable[[], None]]:
        def wrap(test: Callable[..., None]) -> Callable[[], None]:
            limited = settings(
                max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck),
                # Not as on CI, where hypothesis would go by a seed of its own.
                phases=(Phase.generate, Phase.shrink), derandomize=False,
            )  # fmt: skip
            return seed(number)(limited(given(**strategies)(test)))

        return wrap

    rule(data=st.lists(fuzzing.FRAMES, max_size=5).map(b"".join), cuts=st.lists(st.integers(0, 300), max_size=6))(
        fuzzing.fuzz_frames
    )()
    rule(text=fuzzing.PACKETS.map(lambda packet: packet[1:]))(fuzzing.fuzz_packet)()
    rule(body=st.binary() | fuzzing.PACKETS.map(lambda packet: packet.encode("utf-8", "surrogatepass")))(
        fuzzing.fuzz_payload
    )()
    with unharmed(server, f"fuzz-{number}") as witness:
        witness.call("subscribe", {"channel": fuzzing.CHANNEL})
        acknowledged: list[int] = []
        sent = 0

        def websocket(frames: list[bytes]) -> None:
            nonlocal sent
            acknowledged.extend(fuzzing.fuzz_websocket(server, frames, sent))
            sent += 1 + len(frames)

        def http(request: bytes) -> None:
            fuzzing.fuzz_http(server, request)

        rule(frames=st.lists(fuzzing.FRAMES, min_size=1, max_size=6))(websocket)()
        rule(request=fuzzing.REQUESTS)(http)()
        everything_acknowledged_happened(witness, acknowledged)
        witness.call("unsubscribe", {"channel": fuzzing.CHANNEL})
    return len(acknowledged)


def everything_acknowledged_happened(witness: SocketClient, acknowledged: list[int]) -> None:
    """What was answered with `ok` has arrived, each once."""
    assert acknowledged, "nothing was acknowledged: the fuzzer does not get as far"
    left = set(acknowledged)
    assert len(left) == len(acknowledged)
    arrived: list[object] = []
    while left:
        payload = witness.next("event")["payload"]
        arrived.append(payload)
        if isinstance(payload, int) and not isinstance(payload, bool):
            left.discard(payload)
    while witness.pending("event"):
        witness.next("event")


@contextmanager
def target() -> Iterator[ServerProcess]:
    """A server of `watched_app`, without limits by rate: the fuzzer is to get further than those."""
    with cluster(18) as postgres:
        server = ServerProcess(
            postgres.url(), app="tests.support.watched_app:app", BINARY="1", MAX_EVENTS_PER_SECOND="0",
            CONNECT_TIMEOUT="2", DRAIN_SECONDS="0.2",
        )  # fmt: skip
        try:
            yield server
        finally:
            server.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="default: %(default)g")
    parser.add_argument(
        "--seed", type=int, default=fuzzing.random_seed(), help="of the first round; the next has one more"
    )
    parser.add_argument("--examples", type=int, default=300, help="of each kind in a round (default: %(default)d)")
    options = parser.parse_args()
    deadline = time.monotonic() + options.minutes * 60
    number: int = options.seed
    with target() as server:
        while time.monotonic() < deadline:
            print(f"round with --seed {number}", flush=True)
            run(server, number, options.examples)
            number += 1
    print(f"{number - options.seed} rounds, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
