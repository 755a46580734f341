"""Verification of tokens: valid and hostile tokens, keys, algorithms, claims."""

import hmac
import json
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
from tests.support.tokens import SECRET, SigningKey, by_hand, complete, forge, hostile_tokens, mint

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
        ({"iss": ["us"]}, "the token's iss is not a string"),
        ({"aud": {"app": 1}}, "the token's aud is neither a string nor a list of strings"),
        ({"iss": None}, "the token lacks exp, or iss or aud where they are configured"),
        ({"aud": None}, "the token lacks exp, or iss or aud where they are configured"),
    ],
)
def test_refusal_has_the_reason(claims: dict[str, Any], message: str) -> None:
    strict = verifier(jwt_issuer="us", jwt_audience=("app", "site"))
    assert strict.verify(mint(iss="us", aud="site")).subject == "somebody"
    assert strict.verify(mint(iss="us", aud=["x", "app"])).subject == "somebody"
    assert refusal(strict, forge(complete({"iss": "us", "aud": "app"} | claims))) == message


#: JSON values of every type, by name: as a claim each is right for at most one type.
VALUES = {
    "null": "null", "true": "true", "false": "false", "zero": "0", "soon": "99999999999", "fraction": "99999999999.5",
    "negative": "-1", "huge": str(10**30), "NaN": "NaN", "infinite": "Infinity", "1e400": "1e400", "text": '"x"',
    "digits": '"99999999999"', "empty text": '""', "surrogate": '"\\ud800"', "list": "[]", "list of text": '["x"]',
    "list of digits": "[99999999999]", "mixed list": '["x",1]', "list of null": "[null]", "object": '{"a":1}',
}  # fmt: skip
_TEXTS = {"text", "digits", "empty text"}
_NUMBERS = {"zero", "soon", "fraction"}
#: The values that are accepted for each registered claim of RFC 7519, and for the claims of AUTHORIZATION.
ACCEPTED = {
    "iss": _TEXTS,
    "sub": _TEXTS,
    "jti": _TEXTS,
    "aud": _TEXTS | {"list", "list of text"},
    "exp": {"soon", "fraction"},
    "nbf": {"zero"},
    "iat": {"zero"},
    "role": _TEXTS,
    "subscribe": {"list", "list of text"},
    "publish": {"list", "list of text"},
}


def with_claim(name: str, value: str) -> str:
    """Return a token with the JSON text ``value`` as the claim ``name``."""
    claims = {"sub": '"somebody"', "exp": str(int(time.time()) + 600)} | {name: value}
    return forge("{" + ",".join(f'"{name}":{value}' for name, value in claims.items()) + "}")


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("name", ACCEPTED)
def test_claims_have_their_types(name: str, kind: str) -> None:
    own = {"role": "rls", "subscribe": "claims", "publish": "claims"}
    of = verifier(authorization=own.get(name, "off"))
    token = with_claim(name, VALUES[kind])
    if kind in ACCEPTED[name]:
        assert of.verify(token)
        return
    message = refusal(of, token)
    # Dates of the right type are compared with the clock.
    dated = name in ("exp", "nbf", "iat") and kind in _NUMBERS | {"huge"} and ("expired" in message or "yet" in message)
    assert f"'s {name} " in message or dated or (name, kind) == ("exp", "null"), message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(["iss", "sub", "aud", "exp", "nbf", "iat", "jti"]), json_values)
def test_accepted_registered_claims_have_their_types(name: str, value: Any) -> None:
    try:
        claims = verifier().verify(with_claim(name, json.dumps(value))).claims
    except UnauthorizedError:
        return
    if name in ("exp", "nbf", "iat"):
        assert type(claims[name]) in (int, float)
    elif name == "aud":
        audience = claims["aud"]
        assert all(type(one) is str for one in (audience if type(audience) is list else [audience]))
    else:
        assert type(claims[name]) is str


@given(json_values, st.sampled_from(["alg", "typ", "kid", "crit", "b64", "cty", "zip", "jwk", "jku", "x5u"]))
def test_headers_never_weaken_the_verification(value: Any, name: str) -> None:
    """Whatever the header says, only a signature with the configured key and algorithm is accepted."""
    header = json.dumps({"alg": "HS256"} | {name: value})
    for sign in (lambda text: b"", lambda text: hmac.digest(b"x" * 64, text, "sha256")):
        assert refusal(verifier(), by_hand(header, complete({}), sign))


@pytest.mark.parametrize(
    ("header", "claims"),
    [
        ('{"alg":"none","alg":"HS256"}', '{"exp":99999999999}'),
        ('{"alg":"HS256","alg":"HS256"}', '{"exp":99999999999}'),
        ('{"alg":"HS256"}', '{"sub":"root","exp":99999999999,"sub":"alice"}'),
        ('{"alg":"HS256"}', '{"exp":99999999999,"app":{"a":1,"a":2}}'),
        ('{"alg":"hs256"}', '{"exp":99999999999}'),
        ('{"alg":"HS256 "}', '{"exp":99999999999}'),
        ('{"alg":["HS256"]}', '{"exp":99999999999}'),
        ('{"alg":{"HS256":1}}', '{"exp":99999999999}'),
        ('{"alg":"HS256","typ":7}', '{"exp":99999999999}'),
        ('{"alg":"HS256","typ":null}', '{"exp":99999999999}'),
        ('{"alg":"HS256","kid":7}', '{"exp":99999999999}'),
        ('{"alg":"HS256","kid":null}', '{"exp":99999999999}'),
        ('{"alg":"HS256","b64":false}', '{"exp":99999999999}'),
        ('{"alg":"HS256","crit":null}', '{"exp":99999999999}'),
    ],
)
def test_ambiguous_or_malformed_tokens_are_refused(header: str, claims: str) -> None:
    sign = lambda text: hmac.digest(SECRET.encode(), text, "sha256")  # noqa: E731
    assert verifier().verify(by_hand('{"alg":"HS256"}', '{"exp":99999999999}', sign))
    assert refusal(verifier(), by_hand(header, claims, sign))


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
        ({"jwt_secret": SigningKey("ec").pem}, "JWT_PUBLIC_KEY"),
        ({"jwt_public_key": "-----BEGIN PUBLIC KEY-----\nabc"}, "JWT_PUBLIC_KEY cannot be read"),
        ({"jwt_public_key": SigningKey("ec").pem, "jwks_url": "/x.json"}, "JWKS_URL"),
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
    "claims",
    [
        {"x": float("nan")},
        {"x": object()},
        {"exp": "x"},
        {"exp": 10**15},
        {"exp": -1},
        {"sub": "\ud800"},
        {"exp": "99999999999"},
        {"exp": True},
        {"sub": 7},
        {"aud": 7},
        {"iat": "1"},
    ],
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
