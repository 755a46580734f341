"""Plans of the checker's writers, drawn from a seed: the same seed yields the same transactions. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeAlias

#: Filler of payloads: characters that are critical for lines, frames or JSON.
AWKWARD = "a\tb\nc\rd\"e\\f/g\x7f\x01 äß日本😀\u2028\u2029\ufeff'%s{}[],:"


@dataclass(frozen=True, slots=True)
class Publish:
    """One message. ``size`` is the approximate size of its JSON payload, with compressible or random content."""

    channel: str
    size: int
    compressible: bool


@dataclass(frozen=True, slots=True)
class Pause:
    """Leave the transaction open for ``seconds``."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Statement:
    """Run ``sql``: a savepoint, its release or rollback, or SET CONSTRAINTS."""

    sql: str


Step: TypeAlias = Publish | Pause | Statement

SAVEPOINT, BACK, RELEASE = "SAVEPOINT here", "ROLLBACK TO SAVEPOINT here", "RELEASE SAVEPOINT here"


@dataclass(frozen=True, slots=True)
class Plan:
    """One transaction, and the pause after it."""

    begin: str
    steps: Sequence[Step]
    commits: bool
    pause: float
    #: Seconds for which the transaction stays prepared before its second phase; None for an ordinary commit.
    prepared: float | None = None


def plan_transactions(random: Random, channels: Sequence[str], pace: float, two_phase: float = 0.0) -> Iterator[Plan]:
    """Yield transactions indefinitely. ``pace`` is the mean pause between two, in seconds.

    ``two_phase`` is the share of the transactions that commit in two phases.
    """
    while True:
        steps = list(_steps(random, channels))
        if random.random() < 0.05:
            # Fires the deferred trigger that notifies the relay long before the commit.
            steps.insert(random.randint(0, len(steps)), Statement("SET CONSTRAINTS ALL IMMEDIATE"))
        if random.random() < 0.02:
            steps.insert(random.randint(1, len(steps)), Pause(random.uniform(1.0, 6.0)))
        yield Plan(
            begin=random.choice(("BEGIN", "BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ")),
            steps=steps,
            commits=random.random() < 0.85,
            # Sometimes several transactions without a pause.
            pause=0.0 if random.random() < 0.3 else random.expovariate(1 / pace),
            prepared=random.choice((0.0, 0.05, 1.5)) if random.random() < two_phase else None,
        )


def plan_publish(random: Random, channels: Sequence[str]) -> Publish:
    """Return a message of any size that a Socket.IO client can send in one packet."""
    return Publish(random.choice(channels), min(size(random), 60_000), compressible=False)


def size(random: Random) -> int:
    """Return a size: mostly small, often near the sizes at which the relay changes its method, rarely up to 1 MB."""
    kind = random.random()
    if kind < 0.85:
        return random.randint(10, 400)
    if kind < 0.94:
        return random.choice((3_900, 4_000, 7_999)) + random.randint(-200, 200)
    if kind < 0.99:
        return random.randint(8_000, 100_000)
    return random.randint(100_000, 990_000)


def payload(random: Random, identifier: str, publish: Publish) -> dict[str, Any]:
    """Return a JSON value of about the planned size, with content that is critical in many kinds of text."""
    room = max(0, publish.size - len(identifier) - 40)
    if room > 20_000:
        pad = "x" * room if publish.compressible else random.randbytes(room // 2).hex()
    else:
        start = random.randrange(len(AWKWARD))
        # As escapes or UTF-8, each character has up to six bytes.
        pad = (AWKWARD[start:] + AWKWARD * (room // len(AWKWARD) + 1))[: max(1, room * 2 // 5)]
    return {"id": identifier, "n": random.randrange(-(2**53), 2**53), "pad": pad, "": [None, True, {"é": {}}]}


def _steps(random: Random, channels: Sequence[str]) -> Iterator[Step]:
    chosen = random.sample(channels, random.choice((1, 1, 1, 2, len(channels))))
    count = random.choice((1, 1, 1, 2, 3, 5, 12))
    if random.random() < 0.01:
        count = random.randint(100, 1200)  # more than one batch of the relay
    inside = False
    for number in range(count):
        if not inside and random.random() < 0.08:
            yield Statement(SAVEPOINT)
            inside = True
        wanted = size(random)
        if count > 50:
            wanted = min(wanted, 5_000)
        yield Publish(random.choice(chosen), wanted, compressible=random.random() < 0.5)
        if inside and (random.random() < 0.4 or number == count - 1):
            yield Statement(random.choice((BACK, RELEASE)))
            inside = False
