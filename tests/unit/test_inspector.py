"""The inspector's pure parts: samples, latencies, roles, passes."""

import base64
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask

from socketio_pg.access.authentication import Authenticator
from socketio_pg.core.config import Settings
from socketio_pg.core.messages import from_log
from socketio_pg.core.metrics import fan_out
from socketio_pg.core.seal import Key, Seal
from socketio_pg.core.sealing import Sealing
from socketio_pg.engine.origins import is_local
from socketio_pg.gateway.admission import Admission
from socketio_pg.inspector import latency
from socketio_pg.inspector.access import InspectorAccess, has_value
from socketio_pg.inspector.latency import Latencies, Measured, Sent, quantiles
from socketio_pg.inspector.passes import SESSION, TICKET, Passes, Reader
from socketio_pg.inspector.samples import COUNT, NAMES, Samples, Value, merge

AT = 1_764_560_000.0


def sample(**values: Value) -> list[Value]:
    return [values.get(name, 0.0) for name in NAMES]


def test_series_end_with_the_slot_that_is_asked_for() -> None:
    samples = Samples()
    for number in (10, 11, 13):
        samples.add(number, sample(messages_in=number, p50=-0.5))
    series = samples.series(14, offset=0.75)
    assert [len(values) for values in series.values()] == [COUNT] * len(NAMES)
    assert series["messages_in"][-6:] == [None, 10, 11, None, 13, None]
    # Raw latencies are corrected by the difference of the clocks, which may be known later.
    assert series["p50"][-5:] == [0.25, 0.25, None, 0.25, None]
    assert series["p99"][-2] == 0.75
    assert samples.series(14, offset=None)["p50"] == [None] * COUNT
    assert samples.series(9, offset=0)["messages_in"] == [None] * COUNT


def test_clock_that_was_set_back_leaves_one_sample_of_each_slot() -> None:
    samples = Samples()
    for number in range(100, 100 + 2 * COUNT):
        samples.add(number, sample(clients=number))
    for number in (150, 151):
        samples.add(number, sample(clients=-number))
    series = samples.series(151, offset=0)["clients"]
    assert series[-2:] == [-150, -151]
    assert series.count(None) == COUNT - 2  # the ones before were forgotten long ago


@pytest.mark.parametrize(
    ("name", "values", "wanted"),
    [
        ("clients", [1, None, 3], 4),
        ("p99", [0.1, 0.3, None], 0.3),
        ("loop_lag", [0.1, 0.3], 0.3),
        ("p50", [0.1, 0.3, 0.2], 0.3),
        ("p50", [0.1, None, None], 0.1),
        ("p50", [None, None], None),
    ],
)
def test_values_of_several_processes_become_one(name: str, values: list[Value], wanted: Value) -> None:
    # The second one has sent most.
    assert merge(name, values, [1, 10, 1][: len(values)]) == wanted


def test_quantiles_are_weighted() -> None:
    measured = [Measured([0.1, 0.2], 1, 2), Measured([], 1, 0), Measured([0.5], 98, 98)]
    assert quantiles(measured, 0.01, 0.5, 0.99) == [0.1, 0.5, 0.5]
    assert quantiles([], 0.5) is None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(latency, "clock", lambda: AT + 0.25)
    return iter(())


def messages(count: int, at: str | None = "2025-12-01T03:33:20.000000Z") -> list[Any]:
    return [from_log(number, "orders", at, '{"é": 1}') for number in range(count)]  # type: ignore[arg-type]


@pytest.mark.usefixtures("clock")
def test_only_messages_that_somebody_gets_are_measured() -> None:
    fan_out.frames += 1  # before anybody measures
    measuring = Latencies(Sent())
    measuring.receive_messages(messages(3))
    assert measuring.take() == Measured([], 1, 0)
    assert measuring.bytes == 3 * len('{"é": 1}'.encode())
    fan_out.frames += 1
    measuring.receive_messages(messages(2))
    assert measuring.take() == Measured([0.25, 0.25], 1, 2)
    fan_out.polled += 1
    measuring.receive_messages(messages(2, at=None))  # NOTIFY has no time
    assert measuring.take() == Measured([], 1, 0)


@pytest.mark.usefixtures("clock")
def test_of_many_messages_each_measured_one_stands_for_as_many() -> None:
    measuring = Latencies(Sent())
    for _ in range(50):
        fan_out.streamed += 1
        measuring.receive_messages(messages(21))
    found = measuring.take()
    assert found.messages == 1050
    assert len(found.raw) <= measuring.most
    assert abs(len(found.raw) * found.weight - found.messages) <= 2 * found.weight


def test_own_events_are_not_counted() -> None:
    sent = Sent()
    events, bytes = sent.events, sent.bytes
    with sent.uncounted():
        fan_out.frames += 5
        fan_out.frame_bytes += 500
    fan_out.streamed += 1
    assert (sent.events - events, sent.bytes - bytes) == (1, 0)


@pytest.mark.parametrize(
    ("claims", "wanted", "has"),
    [
        ({"role": "ops"}, "ops", True),
        ({"role": ["x", "ops"]}, "ops", True),
        ({"role": "opsx"}, "ops", False),
        ({"role": {"ops": True}}, "ops", False),
        ({"role": None}, "ops", False),
        ({}, "ops", False),
        ({"groups": ["staff"]}, "groups=staff", True),
        ({"groups": "a=b"}, "groups=a=b", True),
        ({"realm_access": {"roles": ["boss"]}}, "realm_access.roles=boss", True),
        ({"realm_access": ["roles"]}, "realm_access.roles=boss", False),
        # A name with dots, as of Auth0, is one name.
        ({"https://example.com/roles": ["boss"]}, "https://example.com/roles=boss", True),
        ({"role": 5}, "5", False),
    ],
)
def test_roles(claims: Mapping[str, Any], wanted: str, has: bool) -> None:
    assert has_value(claims, wanted, "role") is has


def sealing(secret: bytes | None) -> Sealing:
    seal = Seal()
    if secret is not None:
        seal.use("here", [Key.from_bytes(secret)])
    made = Sealing(seal)
    made.wait_seconds = 0.01
    return made


def test_pass_is_good_for_its_purpose_time_and_cluster() -> None:
    settings = Settings(inspector_token="0123456789abcdef")
    passes = Passes(settings, sealing(b"1" * 32))
    reader = Reader(True, "jwt", "ann", time.time() + 60, "proof")
    text = passes.issue(SESSION, reader, 60)
    assert passes.open(SESSION, text) == reader
    assert passes.open(TICKET, text) is None
    assert passes.open(SESSION, passes.issue(SESSION, reader, 0)) is None
    ended = Reader(True, "jwt", "ann", time.time() - 1, "proof")
    assert passes.open(SESSION, passes.issue(SESSION, ended, 60)) is None
    assert Passes(settings, sealing(b"2" * 32)).open(SESSION, text) is None
    for damaged in ("", "x", text[:-2], text[:50] + "_" + text[51:], text.swapcase(), "é" + text, text * 20):
        assert passes.open(SESSION, damaged) is None


def test_pass_without_a_cluster_key_is_good_where_the_secrets_are_the_same() -> None:
    reader = Reader(False, "token")
    text = Passes(Settings(inspector_token="0123456789abcdef"), sealing(None)).issue(SESSION, reader, 60)
    # Also on a node that has the cluster key meanwhile.
    for key in (None, b"1" * 32):
        assert Passes(Settings(inspector_token="0123456789abcdef"), sealing(key)).open(SESSION, text) == reader
        assert Passes(Settings(inspector_token="another: 0123456789"), sealing(key)).open(SESSION, text) is None
        assert Passes(Settings(debug=True), sealing(key)).open(SESSION, text) is None


@pytest.mark.parametrize(
    "more", [{"inspector_admin_token": "fedcba9876543210"}, {"inspector_admin_roles": ("boss",)}, {"debug": True}]
)
def test_inspector_token_alone_makes_no_key_where_somebody_may_act(more: dict[str, Any]) -> None:
    token = "0123456789abcdef"
    known = Key.from_text(f"inspector\0{token}").id
    reading = Passes(Settings(inspector_token=token), sealing(None))
    assert sealed_with(reading.issue(SESSION, Reader(False, "token"), 60)) == known
    acting = Passes(Settings(inspector_token=token, **more), sealing(None))
    assert sealed_with(acting.issue(SESSION, Reader(True, "jwt"), 60)) != known


@pytest.mark.parametrize("forged", [Reader(True, "development"), Reader(True, "jwt"), Reader(True, "token")])
def test_pass_that_a_reader_has_made_is_refused(forged: Reader) -> None:
    settings = Settings(inspector_token="0123456789abcdef", inspector_roles=("operator",), jwt_secret="s" * 64)
    access = inspector_access(settings)
    # Whoever has the keys, such as another node, seals what its own settings allow.
    proof = access._proof_of_roles()
    text = Passes(settings, sealing(None)).issue(SESSION, replace(forged, proof=proof), 60)
    assert access.open(SESSION, text) is None
    read = Passes(settings, sealing(None)).issue(SESSION, replace(forged, may_act=False, by="jwt", proof=proof), 60)
    assert access.open(SESSION, read) is not None
    renewed = inspector_access(replace(settings, jwt_secret="t" * 64, cluster_key=("k" * 32,)))
    assert renewed.open(SESSION, read) is None


def inspector_access(settings: Settings) -> InspectorAccess:
    authenticator = Authenticator(settings, Flask(__name__))
    return InspectorAccess(settings, authenticator, Admission(settings), Passes(settings, sealing(None)))


def sealed_with(text: str) -> str:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode().split(" ")[2]


@pytest.mark.parametrize(
    ("environ", "local"),
    [
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "127.0.0.1:3030"}, True),
        ({"REMOTE_ADDR": "::1", "HTTP_HOST": "[::1]:3030"}, True),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "app.localhost"}, True),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "evil.example"}, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "localhost.evil.example"}, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "127.0.0.1,evil.example"}, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": ""}, False),
        ({"REMOTE_ADDR": "127.0.0.1"}, False),
        ({"REMOTE_ADDR": "192.0.2.1", "HTTP_HOST": "localhost"}, False),
        ({"REMOTE_ADDR": "", "HTTP_HOST": "localhost"}, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "localhost", "HTTP_X_FORWARDED_FOR": "127.0.0.1"}, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "localhost", "HTTP_VIA": "1.1 proxy"}, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "localhost", "HTTP_X_FORWARDED_PROTO": "https"}, False),
        # By default, nginx sends Host with the server's own address, and no other header.
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "127.0.0.1:3030", "SERVER_PROTOCOL": "HTTP/1.0"}, False),
        ({"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "127.0.0.1:3030", "SERVER_PROTOCOL": "HTTP/1.1"}, True),
    ],
)
def test_own_machine(environ: dict[str, str], local: bool) -> None:
    assert is_local(environ) is local
