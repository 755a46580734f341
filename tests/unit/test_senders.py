"""The claims of a client that subscribers get with its messages."""

import pytest

from socketio_pg.access.senders import Senders
from socketio_pg.access.tokens import Claims
from socketio_pg.core.errors import InvalidRequestError


def test_sender_has_the_chosen_claims_that_the_token_has() -> None:
    senders = Senders(("sub", "name", "team"))
    claims = Claims({"sub": "42", "name": "Zoë", "exp": 4_000_000_000, "team": None})
    assert senders.of(claims) == {"sub": "42", "name": "Zoë"}
    assert senders.json_of(claims) == '{"sub":"42","name":"Zoë"}'
    assert Senders(("sub",)).json_of(Claims({"sub": "42", "n": 2**70})) == '{"sub":"42"}'


@pytest.mark.parametrize("claims", [None, Claims({}), Claims({"name": "Zoë"})])
def test_others_have_no_sender(claims: Claims | None) -> None:
    assert Senders(("sub",)).json_of(claims) is None
    assert Senders(()).json_of(Claims({"sub": "42"})) is None


@pytest.mark.parametrize("value", ["x" * 1024, "\0", "\ud800"])
def test_claims_that_a_message_cannot_carry_are_refused(value: str) -> None:
    with pytest.raises(InvalidRequestError, match="the token's claims sub, name have "):
        Senders(("sub", "name")).json_of(Claims({"sub": "42", "name": value}))
