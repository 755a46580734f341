"""Claims of tokens that the inspector signs."""

from typing import Any

import pytest

from socketio_pg.access.signing import check_standard, standard_claims
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import InvalidRequestError

OURS = Settings(jwt_issuer="https://login.example", jwt_audience=("app", "api"))


@pytest.mark.parametrize("claims", [{}, {"iss": "https://login.example"}, {"aud": "api"}, {"aud": ["api", "app"]}])
def test_own_issuer_and_audience_may_be_named(claims: dict[str, Any]) -> None:
    check_standard(OURS, claims)
    assert standard_claims(OURS) == {"iss": "https://login.example", "aud": "app"}


@pytest.mark.parametrize("claims", [{"iss": "x"}, {"iss": None}, {"aud": "x"}, {"aud": ["app", "x"]}, {"aud": None}])
def test_those_of_another_service_are_refused(claims: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        check_standard(OURS, claims)
    check_standard(Settings(), claims)  # the server checks neither
