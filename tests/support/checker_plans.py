"""What the checker's writers will do, drawn from a seed: the same seed, the same transactions. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeAlias

#: What a payload may be filled with: everything that a line, a frame or JSON could stumble over.
AWKWARD = "a\tb\nc\rd\"e\\f/g\x7f\x01 äß日本😀\u2028\u2029\ufeff'%s{}[],:"


@dataclass(frozen=True, slots=True)
class Publish:
    """One message; ``size`` is about that of its payload as JSON. Filled with what compresses, or does not."""

    channel: str
    size: int
    compressible: bool


@dataclass(frozen=True, slots=True)
class Pause:
    """Leave the transaction open for ``seconds``."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Statement:
    """Run ``sql``: a savepoint and what becomes of it, or SET CONSTRAINTS."""

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


def plan_transactions(random: Random, channels: Sequence[str], pace: float) -> Iterator[Plan]:
    """Transactions without end. ``pace`` is the mean pause between two, in seconds."""
    while True:
        steps = list(_steps(random, channels))
        if random.random() < 0.05:
            # Then the doorbell rings long before the commit.
            steps.insert(random.randint(0, len(steps)), Statement("SET CONSTRAINTS ALL IMMEDIATE"))
        if random.random() < 0.02:
            steps.insert(random.randint(1, len(steps)), Pause(random.uniform(1.0, 6.0)))
        yield Plan(
            begin=random.choice(("BEGIN", "BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ")),
            steps=steps,
            commits=random.random() < 0.85,
            # Now and then several without any pause.
            pause=0.0 if random.random() < 0.3 else random.expovariate(1 / pace),
        )


def plan_publish(random: Random, channels: Sequence[str]) -> Publish:
    """A message of any size that a Socket.IO client may send in one piece."""
    return Publish(random.choice(channels), min(size(random), 60_000), compressible=False)


def size(random: Random) -> int:
    """Mostly small; often near the sizes at which the relay changes its way; now and then up to 1 MB."""
    kind = random.random()
    if kind < 0.85:
        return random.randint(10, 400)
    if kind < 0.94:
        return random.choice((3_900, 4_000, 7_999)) + random.randint(-200, 200)
    if kind < 0.99:
        return random.randint(8_000, 100_000)
    return random.randint(100_000, 990_000)


def payload(random: Random, identifier: str, publish: Publish) -> dict[str, Any]:
    """A JSON value of about the size, with something that can go wrong in every kind of text."""
    room = max(0, publish.size - len(identifier) - 40)
    if room > 20_000:
        pad = "x" * room if publish.compressible else random.randbytes(room // 2).hex()
    else:
        start = random.randrange(len(AWKWARD))
        # In escapes and UTF-8 the characters take up to six bytes each.
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
