"""JWK sets: parsing, caching, and reading again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest

from socketio_pg.access.keys import KeySet, algorithms_of, parse_key_set
from socketio_pg.core.errors import AuthenticationUnavailableError, UnauthorizedError
from tests.support.tokens import SigningKey

RSA, OTHER, EC, ED = SigningKey("rsa", "1"), SigningKey("rsa", "2"), SigningKey("ec", "3"), SigningKey("ed", "4")


class File:
    """A JWK set in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, *keys: SigningKey) -> None:
        self.path.write_text(json.dumps({"keys": [key.jwk for key in keys]}))


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "jwks.json")


def known(keys: KeySet, *wanted: SigningKey) -> list[bool]:
    found = []
    for key in wanted:
        try:
            found.append(keys.find(key.kid, key.algorithm) == key.private.public_key())
        except (UnauthorizedError, AuthenticationUnavailableError):
            found.append(False)
    return found


def test_key_set_can_have_keys_of_all_types() -> None:
    keys = parse_key_set(json.dumps({"keys": [RSA.jwk, EC.jwk, ED.jwk]}))
    assert [(key.id, key.algorithms) for key in keys] == [("1", ("RS256",)), ("3", ("ES256",)), ("4", ("EdDSA",))]


def test_key_without_alg_supports_all_algorithms_of_its_type() -> None:
    jwk = {name: value for name, value in RSA.jwk.items() if name != "alg"}
    [key] = parse_key_set(json.dumps({"keys": [jwk]}))
    assert key.algorithms == ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")


@pytest.mark.parametrize(
    "jwk",
    [
        {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"},
        {"kty": "oct", "k": "c2VjcmV0"},
        RSA.jwk | {"use": "enc"},
        RSA.jwk | {"key_ops": ["sign"]},
        RSA.jwk | {"key_ops": 7},
        RSA.jwk | {"alg": "RSA-OAEP"},
        RSA.jwk | {"alg": "HS256"},
        RSA.jwk | {"alg": "ES256"},
        RSA.jwk | {"alg": ["RS256"]},
        RSA.jwk | {"kty": ["RSA"]},
        RSA.jwk | {"e": 65537},
        EC.jwk | {"crv": "P-384"},
        RSA.jwk | {"n": "AQAB"},
        json.loads(jwt.get_algorithm_by_name("RS256").to_jwk(RSA.private)),
        {"kty": "new"},
        {},
        None,
        "text",
    ],
)
def test_unusable_keys_are_ignored(jwk: Any) -> None:
    assert parse_key_set(json.dumps({"keys": [jwk, EC.jwk]}))[0].id == "3"


@pytest.mark.parametrize("text", ["", "abc", "[]", "7", "{}", '{"keys": {}}', '{"keys": null}'])
def test_invalid_key_set_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"JWK set|Expecting value"):
        parse_key_set(text)


def test_empty_key_set_is_valid() -> None:
    assert parse_key_set('{"keys": []}') == []


def test_invalid_key_has_no_algorithms() -> None:
    assert algorithms_of(RSA.private) == algorithms_of("text") == algorithms_of(None) == ()


def test_key_is_found_by_id_and_algorithm(file: File) -> None:
    file.write(RSA, OTHER, EC)
    keys = KeySet(str(file.path), 300)
    assert known(keys, RSA, OTHER, EC) == [True, True, True]
    with pytest.raises(UnauthorizedError, match="not known"):
        keys.find("1", "ES256")
    with pytest.raises(UnauthorizedError, match="name the key"):
        keys.find(None, "RS256")
    assert keys.find(None, "ES256").curve.name == "secp256r1"
    nonsense: object
    for nonsense in ({}, [], 7, True):
        with pytest.raises(UnauthorizedError, match="not known"):
            keys.find(nonsense, "RS256")


def test_unknown_key_is_unauthorized_only_after_a_refetch(file: File, clock: Callable[[float], None]) -> None:
    file.write(RSA)
    keys = KeySet(str(file.path), 300)
    assert known(keys, RSA) == [True]
    for _ in range(2):
        with pytest.raises(AuthenticationUnavailableError, match="try again"):
            keys.find("2", "RS256")
    clock(KeySet.min_interval)
    with pytest.raises(UnauthorizedError, match="not known"):
        keys.find("2", "RS256")


def test_refetches_for_unknown_keys_are_rate_limited(file: File, clock: Callable[[float], None]) -> None:
    file.write(RSA)
    keys = KeySet(str(file.path), 300)
    assert known(keys, RSA) == [True]
    file.write(RSA, OTHER)
    # Untrusted clients can name keys that do not exist: this must not cause repeated fetches.
    assert known(keys, OTHER) == [False]
    clock(KeySet.min_interval)
    assert known(keys, OTHER) == [True]


def test_revoked_key_expires_with_the_cache(file: File, clock: Callable[[float], None]) -> None:
    file.write(RSA, EC)
    keys = KeySet(str(file.path), 300)
    assert known(keys, RSA) == [True]
    file.write(OTHER)
    clock(299)
    assert known(keys, RSA) == [True]
    clock(1)
    assert known(keys, RSA, OTHER) == [False, True]


def test_refetch_for_a_new_key_also_revokes_removed_keys(file: File, clock: Callable[[float], None]) -> None:
    file.write(RSA)
    keys = KeySet(str(file.path), 300)
    assert known(keys, RSA) == [True]
    file.write(OTHER)
    clock(KeySet.min_interval)
    assert known(keys, OTHER, RSA) == [True, False]


def test_stale_keys_are_used_for_a_limited_time(file: File, clock: Callable[[float], None]) -> None:
    file.write(RSA)
    keys = KeySet(str(file.path), 300)
    assert known(keys, RSA) == [True]
    file.path.write_text("garbage")
    clock(300)
    assert known(keys, RSA) == [True]
    with pytest.raises(AuthenticationUnavailableError):
        keys.find("2", "RS256")
    clock(KeySet.max_stale + 1)
    with pytest.raises(AuthenticationUnavailableError):
        keys.find("1", "RS256")
    file.write(RSA)
    clock(KeySet.min_interval)
    assert known(keys, RSA) == [True]


def test_failed_fetch_is_not_retried_immediately(
    file: File, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0

    def fail(self: KeySet) -> bytes:
        nonlocal reads
        reads += 1
        raise RuntimeError("an unexpected error")

    monkeypatch.setattr(KeySet, "_read", fail)
    keys = KeySet(str(file.path), 300)
    for _ in range(10):
        with pytest.raises(AuthenticationUnavailableError):
            keys.find("1", "RS256")
    assert reads == 1
    clock(KeySet.min_interval)
    with pytest.raises(AuthenticationUnavailableError):
        keys.find("1", "RS256")
    assert reads == 2


def test_missing_key_set_is_fetched_later(file: File, clock: Callable[[float], None]) -> None:
    keys = KeySet(str(file.path), 300)
    with pytest.raises(AuthenticationUnavailableError):
        keys.find("1", "RS256")
    file.write(RSA)
    with pytest.raises(AuthenticationUnavailableError):
        keys.find("1", "RS256")
    clock(KeySet.min_interval)
    assert known(keys, RSA) == [True]
