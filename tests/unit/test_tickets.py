"""Tickets: for whom and for how long they are good, and what is none."""

import time

import pytest

from socketio_pg.access.tickets import Tickets
from socketio_pg.access.tokens import Claims
from socketio_pg.core.errors import InvalidRequestError, UnauthorizedError
from socketio_pg.core.seal import Key, Seal
from socketio_pg.core.sealing import Sealing

# The token outlives any run of the tests.
ALICE, BOB = Claims({"sub": "alice", "exp": time.time() + 36_000, "n": 1.5}), Claims({"sub": "bob"})


def tickets(key: int = 0, identity: str = "1/1") -> Tickets:
    sealing = Sealing(Seal())
    sealing.use(identity, [Key.from_bytes(bytes([key]) * 32)])
    return Tickets(sealing)


def test_another_node_opens_a_ticket_while_it_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    ticket = tickets().issue(ALICE, ["a", "b"])
    opened = tickets().open(ticket)
    assert opened.claims is not None
    assert (opened.claims.text, opened.channels, opened.fresh) == (ALICE.text, frozenset("ab"), True)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 2 * Tickets.seconds)
    assert not tickets().open(ticket).fresh
    monkeypatch.setattr(time, "time", lambda: now - Tickets.seconds)
    assert not tickets().open(ticket).fresh


def test_an_anonymous_client_may_have_one() -> None:
    assert tickets().open(tickets().issue(None, ["a"])).claims is None


def test_the_cookie_keeps_it_good_for_the_same_client(monkeypatch: pytest.MonkeyPatch) -> None:
    proof, seconds = tickets().prove(ALICE)
    assert 0 < seconds <= 36_000 < Tickets.proof_seconds  # as long as the token
    assert tickets().prove(BOB)[1] == pytest.approx(Tickets.proof_seconds, abs=2)
    tickets().require_proof(["x", proof], Claims(dict(ALICE.claims)))
    for shown, claims in (([], ALICE), ([proof], BOB), ([proof], None), ([f"{proof}x"], ALICE)):
        with pytest.raises(UnauthorizedError):
            tickets().require_proof(shown, claims)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 36_001)
    with pytest.raises(UnauthorizedError):
        tickets().require_proof([proof], ALICE)


def test_nothing_else_is_a_ticket() -> None:
    ticket, (proof, _) = tickets().issue(ALICE, ["a"]), tickets().prove(ALICE)
    cut = [ticket[:-1], ticket[1:], ticket.swapcase(), f"{ticket}A", "", "ä", "\0", "A" * 10**6, "=" * 7]
    for text in (proof, tickets(key=1).issue(ALICE, ["a"]), tickets(identity="2/2").issue(ALICE, ["a"]), *cut):
        with pytest.raises(UnauthorizedError):
            tickets().open(text)
    with pytest.raises(UnauthorizedError):
        tickets().require_proof([ticket], ALICE)  # a ticket is no proof either


def test_a_ticket_that_no_address_could_have_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="too large"):
        tickets().issue(Claims({"sub": "x" * 10_000}), ["a"])
