"""Verification of tokens: valid and hostile tokens, keys, algorithms, claims."""

import time
from datetime import datetime, timedelta, timezone
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.access.tokens import MAX_TOKEN_BYTES, Claims, TokenVerifier, bearer_token
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import ConfigurationError, UnauthorizedError
from tests.support.tokens import SECRET, SigningKey, complete, forge, hostile_tokens, mint

HOSTILE = dict(hostile_tokens())


@pytest.fixture(scope="module", params=["rsa", "ec", "ed"])
def signing_key(request: pytest.FixtureRequest) -> SigningKey:
    return SigningKey(request.param)


def verifier(**settings: Any) -> TokenVerifier:
    return TokenVerifier(Settings(**{"jwt_secret": SECRET} | settings))


def refusal(of: TokenVerifier, token: object) -> str:
    with pytest.raises(UnauthorizedError) as raised:
        of.verify(token)
    return raised.value.message


def test_valid_token_has_its_claims() -> None:
    exp = int(time.time()) + 60
    claims = verifier().verify(mint(sub="alice", exp=exp, role="authenticated", app_metadata={"teams": [1, 2]}))
    assert claims.subject == "alice"
    assert claims.expires_at == exp
    assert claims.claims["app_metadata"] == {"teams": [1, 2]}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_token_is_refused(name: str) -> None:
    message = refusal(verifier(), HOSTILE[name])
    # The message must not contain the token, because it goes to clients and logs.
    token = HOSTILE[name]
    assert not isinstance(token, str) or len(token) < 8 or token[:8] not in message


@given(
    st.one_of(st.text(), st.binary().map(lambda data: data.decode("latin-1")), st.from_regex(r"[\w-]*\.[\w-]*\.[\w-]*"))
)
def test_any_text_is_unauthorized(token: str) -> None:
    with pytest.raises(UnauthorizedError):
        verifier().verify(token)


@given(st.data())
def test_modified_token_is_refused(data: Any) -> None:
    token = mint()
    index = data.draw(st.integers(0, len(token) - 1))
    letter = data.draw(st.sampled_from("ABCxyz019-_.="))
    changed = token[:index] + letter + token[index + 1 :]
    try:
        claims = verifier().verify(changed)
    except UnauthorizedError:
        return
    # The last character of a Base64 part has unused bits.
    assert claims.subject == "somebody"
    assert index == len(token) - 1 or changed == token


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"exp": 1}, "the token has expired"),
        ({"nbf": 2**40}, "the token is not valid yet"),
        ({"exp": None}, "the token lacks exp, or iss or aud where they are configured"),
        ({"sub": 1}, "the token's sub is not a string"),
        ({"iss": "them"}, "the token comes from another issuer"),
        ({"aud": "them"}, "the token is for another audience"),
        ({"aud": ["them", "others"]}, "the token is for another audience"),
        ({"iss": ["us"]}, "the token comes from another issuer"),
        ({"aud": {"app": 1}}, "the token is for another audience"),
        ({"iss": None}, "the token lacks exp, or iss or aud where they are configured"),
        ({"aud": None}, "the token lacks exp, or iss or aud where they are configured"),
    ],
)
def test_refusal_has_the_reason(claims: dict[str, Any], message: str) -> None:
    strict = verifier(jwt_issuer="us", jwt_audience=("app", "site"))
    assert strict.verify(mint(iss="us", aud="site")).subject == "somebody"
    assert strict.verify(mint(iss="us", aud=["x", "app"])).subject == "somebody"
    assert refusal(strict, forge(complete({"iss": "us", "aud": "app"} | claims))) == message


def test_leeway_tolerates_clock_skew() -> None:
    now = int(time.time())
    assert verifier(jwt_leeway=30.0).verify(mint(exp=now - 20, nbf=now + 20))
    assert refusal(verifier(jwt_leeway=0.0), mint(exp=now - 1)) == "the token has expired"


def test_token_size_is_limited() -> None:
    token = mint(pad="x" * 100)
    pad = "x" * (100 + (MAX_TOKEN_BYTES - len(token)) * 3 // 4 - 2)
    assert MAX_TOKEN_BYTES - 8 < len(mint(pad=pad)) <= MAX_TOKEN_BYTES
    assert verifier().verify(mint(pad=pad))
    assert "at most 16384" in refusal(verifier(), mint(pad=pad + "x" * 8))


def test_public_key_accepts_only_its_algorithm(signing_key: SigningKey) -> None:
    of = TokenVerifier(Settings(jwt_public_key=signing_key.pem))
    assert of.algorithms == (signing_key.algorithm,)
    assert of.verify(signing_key.sign(sub="alice")).subject == "alice"
    assert refusal(of, SigningKey("rsa").sign())
    for name, token in hostile_tokens("k" * 64):
        assert refusal(of, token), name


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_hmac_algorithm_must_match(algorithm: str) -> None:
    of = verifier(jwt_algorithms=(algorithm,))
    for other in ("HS256", "HS384", "HS512"):
        if other == algorithm:
            assert of.verify(mint(algorithm=other)).subject == "somebody"
        else:
            assert refusal(of, mint(algorithm=other)) == "the token's algorithm is not accepted"


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"])
def test_rsa_algorithms(algorithm: str) -> None:
    key = SigningKey("rsa")
    token = jwt.encode(complete({}), key.private, algorithm)
    assert TokenVerifier(Settings(jwt_public_key=key.pem, jwt_algorithms=(algorithm,))).verify(token)
    # Without JWT_ALGORITHMS, an RSA key is for RS256.
    assert algorithm == "RS256" or refusal(TokenVerifier(Settings(jwt_public_key=key.pem)), token)


@pytest.mark.parametrize("algorithms", [(), ("RS256", "HS256")], ids=["by default", "both configured"])
def test_public_key_is_not_accepted_as_a_secret(signing_key: SigningKey, algorithms: tuple[str, ...]) -> None:
    """Algorithm confusion: an HS256 token signed with the public key as the secret."""
    settings: dict[str, Any] = {"jwt_public_key": signing_key.pem}
    if algorithms:
        settings |= {"jwt_secret": SECRET, "jwt_algorithms": (signing_key.algorithm, "HS256")}
    of = TokenVerifier(Settings(**settings))
    for secret in (signing_key.pem, signing_key.pem.strip()):
        assert refusal(of, forge(complete({}), secret))
    assert of.verify(signing_key.sign())


def test_secret_and_public_key_can_be_used_together(signing_key: SigningKey) -> None:
    """This allows a migration from one to the other."""
    of = TokenVerifier(Settings(jwt_secret=SECRET, jwt_public_key=signing_key.pem))
    assert of.verify(mint()).subject == of.verify(signing_key.sign()).subject == "somebody"


def test_certificate_can_be_a_public_key() -> None:
    key = SigningKey("rsa")
    assert TokenVerifier(Settings(jwt_public_key=certificate(key))).verify(key.sign())


def certificate(key: SigningKey) -> str:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(timezone.utc)
    builder = x509.CertificateBuilder(name, name, key.private.public_key(), 1, now, now + timedelta(days=1))
    signed = builder.sign(key.private, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"jwt_secret": "short"}, "at least 32"),
        ({"jwt_secret": "x" * 40, "jwt_algorithms": ("HS512",)}, "at least 64"),
        ({"jwt_secret": SECRET, "jwt_algorithms": ("none",)}, "'none'"),
        ({"jwt_secret": SECRET, "jwt_algorithms": ("RS256",)}, "'RS256'"),
        ({"jwt_algorithms": ("HS256",)}, "there is no key"),
        ({"jwt_secret": SigningKey("rsa").pem}, "JWT_PUBLIC_KEY"),
        ({"jwt_public_key": "-----BEGIN PUBLIC KEY-----\nabc"}, "JWT_PUBLIC_KEY cannot be read"),
        ({"jwt_public_key": SigningKey("rsa").pem, "jwks_url": "/x.json"}, "JWKS_URL"),
        ({"jwt_public_key": SigningKey("ec").pem, "jwt_algorithms": ("RS256",)}, "configured keys: ES256"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        TokenVerifier(Settings(**settings))
    assert word in raised.value.message
    assert settings.get("jwt_secret", "nothing") not in raised.value.message


def test_weak_rsa_key_is_refused() -> None:
    weak = SigningKey("rsa")
    weak.private = rsa.generate_private_key(65537, 1024)
    with pytest.raises(ConfigurationError, match="2048"):
        TokenVerifier(Settings(jwt_public_key=weak.pem))


def test_no_token_is_accepted_without_keys() -> None:
    of = TokenVerifier(Settings())
    assert of.algorithms == ()
    assert refusal(of, mint())
    assert refusal(of, jwt.encode(complete({}), "", "none"))


# -- claims ------------------------------------------------------------------------------------------------------------


def test_claims_to_wire() -> None:
    assert Claims({"sub": "7", "exp": 0}).to_wire() == {"client": "7", "expires_at": "1970-01-01T00:00:00+00:00"}
    assert Claims({}).to_wire() == {"client": None, "expires_at": None}


def test_claims_text_is_ascii() -> None:
    text = Claims({"x": "\u00e9\0\ud800", "n": 10**20}).text
    assert text == r'{"x":"\u00e9\u0000\ud800","n":100000000000000000000}'


@pytest.mark.parametrize(
    "claims", [{"x": float("nan")}, {"x": object()}, {"exp": "x"}, {"exp": 10**15}, {"exp": -1}, {"sub": "\ud800"}]
)
def test_invalid_claims_are_refused(claims: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        Claims(claims)


@pytest.mark.parametrize(
    ("header", "token"),
    [
        (None, None), ("", None), ("Bearer", None), ("Bearer ", None), ("Basic abc", None), ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"), ("Bearerabc", None),
    ],
)  # fmt: skip
def test_bearer_token(header: str | None, token: str | None) -> None:
    assert bearer_token(header) == token
