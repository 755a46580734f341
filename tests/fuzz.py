"""`python -m tests.fuzz`: sends untrusted input to a server in many rounds, each with a seed that reproduces it.

Only on the same commit: hypothesis also takes constants from the source of the loaded modules.
"""

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
    """Run one round. Return the number of acknowledged messages.

    Raises AssertionError, with the smallest failing input, when an invariant is violated.
    """

    def rule(**strategies: st.SearchStrategy[object]) -> Callable[[Callable[..., None]], Callable[[], None]]:
        def wrap(test: Callable[..., None]) -> Callable[[], None]:
            limited = settings(
                max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck),
                # On CI, hypothesis would otherwise use its own seed.
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
        assert_acknowledged_messages_arrived(witness, acknowledged)
        witness.call("unsubscribe", {"channel": fuzzing.CHANNEL})
    return len(acknowledged)


def assert_acknowledged_messages_arrived(witness: SocketClient, acknowledged: list[int]) -> None:
    """Assert that every message acknowledged with `ok` has arrived, once."""
    assert acknowledged, "nothing was acknowledged: the fuzzer does not get that far"
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
    """Run a server of `watched_app` without rate limits, so that input gets beyond them."""
    with cluster() as postgres:
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
        "--seed",
        type=int,
        default=fuzzing.random_seed(),
        help="seed of the first round; increases by one",
    )
    parser.add_argument("--examples", type=int, default=300, help="examples of each kind (default: %(default)d)")
    options = parser.parse_args()
    deadline = time.monotonic() + options.minutes * 60
    number: int = options.seed
    with target() as server:
        while time.monotonic() < deadline:
            print(f"round with --seed {number}", flush=True)
            try:
                run(server, number, options.examples)
            except BaseException:
                print(f"the end of the server's log:\n{server.log[-10_000:]}", flush=True)
                raise
            number += 1
    print(f"{number - options.seed} rounds, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
