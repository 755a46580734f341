"""Permission checks: rules and cache, with simulated policies."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from socketio_pg.access.permissions import Permissions
from socketio_pg.access.policies import Policies
from socketio_pg.access.questions import Action, Question
from socketio_pg.access.tokens import Claims
from socketio_pg.core import green
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import (
    ConfigurationError,
    DatabaseError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    ForbiddenError,
    LogNotInstalledError,
)
from tests.support.pace import slowness

ALICE = Claims({"sub": "alice", "role": "authenticated"})


class Answers(Policies):
    """Allows the channels in ``allowed``, records questions, and can wait or fail."""

    def __init__(self) -> None:
        self.allowed: set[str] = set()
        self.asked: list[Question] = []
        self.error: Exception | None = None
        self.gate: green.Event | None = None

    def ask(self, question: Question) -> bool:
        self.asked.append(question)
        allowed = question.channel in self.allowed
        if self.gate is not None:
            self.gate.wait(5)
        if self.error is not None:
            raise self.error
        return allowed


@pytest.fixture
def answers() -> Answers:
    return Answers()


def may(permissions: Permissions, claims: Claims | None, action: Action, channel: str) -> bool:
    try:
        permissions.require(claims, action, channel)
    except ForbiddenError:
        return False
    return True


def matrix(answers: Answers, mode: str, claims: Claims | None, **settings: Any) -> tuple[bool, bool]:
    """Return whether a client may (subscribe, publish) in channel ``foo``."""
    permissions = Permissions(Settings(**settings), mode, answers)
    return may(permissions, claims, "subscribe", "foo"), may(permissions, claims, "publish", "foo")


@pytest.mark.parametrize(
    ("mode", "claims", "settings", "wanted"),
    [
        ("off", None, {}, (True, True)),
        ("off", None, {"publish": "off"}, (True, False)),
        ("off", None, {"publish": "authenticated"}, (True, False)),
        ("required", ALICE, {}, (True, True)),
        ("required", ALICE, {"publish": "off"}, (True, False)),
        ("optional", ALICE, {}, (True, True)),
        ("optional", None, {}, (False, False)),
        ("optional", None, {"public_channels": ("f*",)}, (True, False)),
        ("optional", None, {"public_channels": ("bar",)}, (False, False)),
        ("optional", None, {"publish": "all"}, (False, True)),
    ],
)
def test_rules_without_authorization(
    answers: Answers, mode: str, claims: Claims | None, settings: dict[str, Any], wanted: tuple[bool, bool]
) -> None:
    assert matrix(answers, mode, claims, **settings) == wanted
    assert answers.asked == []


@pytest.mark.parametrize(
    ("claims", "wanted"),
    [
        ({}, (False, False)),
        ({"subscribe": ["foo"]}, (True, False)),
        ({"publish": ["foo"]}, (False, True)),
        ({"subscribe": ["bar", "f*"], "publish": ["*"]}, (True, True)),
        ({"subscribe": [], "publish": []}, (False, False)),
        ({"subscribe": "foo"}, (False, False)),
        ({"subscribe": "*"}, (False, False)),
        ({"subscribe": {"foo": True}}, (False, False)),
        ({"subscribe": [["foo"], None, 7, {"a": "foo"}]}, (False, False)),
        ({"subscribe": ["fo", "fooo", "FOO", "f?o", "f.o", "[f]oo", ""]}, (False, False)),
        ({"subscribe": None, "publish": False}, (False, False)),
    ],
)
def test_patterns_in_claims(answers: Answers, claims: dict[str, Any], wanted: tuple[bool, bool]) -> None:
    assert matrix(answers, "required", Claims(claims), authorization="claims") == wanted


def test_clients_without_claims(answers: Answers) -> None:
    assert matrix(answers, "optional", None, authorization="claims") == (False, False)
    assert matrix(answers, "optional", None, authorization="claims", publish="all") == (False, False)
    assert matrix(answers, "optional", None, authorization="claims", public_channels=("foo",)) == (True, False)


def test_pattern_with_many_stars_is_fast(answers: Answers) -> None:
    claims = Claims({"subscribe": ["a*" * 2000 + "b"] * 10})
    permissions = Permissions(Settings(authorization="claims"), "required", answers)
    began = time.process_time()
    assert not may(permissions, claims, "subscribe", "a" * 63)
    assert time.process_time() - began < slowness()


@pytest.mark.parametrize(
    ("mode", "claims", "settings", "wanted"),
    [
        ("off", None, {}, "presence join ephemeral"),
        ("off", None, {"publish": "off"}, "presence join"),
        ("off", None, {"presence": "off", "publish": "off", "ephemeral": "all"}, "ephemeral"),
        ("required", ALICE, {}, "presence join ephemeral"),
        ("required", ALICE, {"presence": "off"}, "ephemeral"),
        ("optional", None, {}, ""),
        ("optional", None, {"public_channels": ("f*",)}, "presence"),
        (
            "optional",
            None,
            {"public_channels": ("f*",), "presence": "all", "ephemeral": "all"},
            "presence join ephemeral",
        ),
        ("required", ALICE, {"html_channels": ("foo",)}, "presence join"),
        ("required", ALICE, {"authorization": "claims"}, ""),
        ("required", Claims({"presence": ["f*"], "join": ["x"]}), {"authorization": "claims"}, "presence"),
        ("required", Claims({"join": ["foo"], "subscribe": ["foo"]}), {"authorization": "claims"}, "join"),
        ("required", Claims({"ephemeral": ["*"], "publish": "foo"}), {"authorization": "claims"}, "ephemeral"),
    ],
)
def test_presence_and_ephemeral_messages_have_permissions_of_their_own(
    answers: Answers, mode: str, claims: Claims | None, settings: dict[str, Any], wanted: str
) -> None:
    permissions = Permissions(Settings(**settings), mode, answers)
    actions: tuple[Action, ...] = ("presence", "join", "ephemeral")
    assert [action for action in actions if may(permissions, claims, action, "foo")] == wanted.split()


# -- policies ----------------------------------------------------------------------------------------------------------


def rls(answers: Answers, mode: str = "required", **settings: Any) -> Permissions:
    settings = {"authorization": "rls", "allowed_roles": ("authenticated",)} | settings
    return Permissions(Settings(**settings), mode, answers)


def test_policies_are_asked(answers: Answers) -> None:
    answers.allowed.add("foo")
    permissions = rls(answers)
    assert may(permissions, ALICE, "subscribe", "foo")
    assert not may(permissions, ALICE, "publish", "bar")
    assert answers.asked == [
        Question("subscribe", "authenticated", '{"sub":"alice","role":"authenticated"}', "foo"),
        Question("publish", "authenticated", '{"sub":"alice","role":"authenticated"}', "bar"),
    ]


@pytest.mark.parametrize(
    "role", ["postgres", "anon", "", "none", "Authenticated", "authenticated ", 7, True, ["authenticated"], {}]
)
def test_policies_are_not_asked_about_disallowed_roles(answers: Answers, role: Any) -> None:
    answers.allowed.add("foo")
    permissions = rls(answers)
    assert not may(permissions, Claims({"role": role}), "subscribe", "foo")
    assert not may(permissions, Claims({"role": role}), "publish", "foo")
    assert answers.asked == []


def test_clients_without_a_role_use_the_anonymous_role(answers: Answers) -> None:
    answers.allowed.add("foo")
    assert not may(rls(answers), Claims({"sub": "alice"}), "subscribe", "foo")
    assert not may(rls(answers, "optional"), None, "subscribe", "foo")
    assert answers.asked == []
    permissions = rls(answers, "optional", anonymous_role="anon")
    assert may(permissions, Claims({"sub": "alice"}), "subscribe", "foo")
    assert may(permissions, None, "subscribe", "foo")
    assert [(question.role, question.claims) for question in answers.asked] == [
        ("anon", '{"sub":"alice","role":"anon"}'),
        ("anon", '{"role":"anon"}'),
    ]


def test_role_claim_is_configurable(answers: Answers) -> None:
    permissions = rls(answers, jwt_role_claim="https://example.com/role")
    may(permissions, Claims({"role": "postgres", "https://example.com/role": "authenticated"}), "subscribe", "foo")
    [question] = answers.asked
    assert (question.role, '"role":"authenticated"' in question.claims) == ("authenticated", True)
    assert not may(permissions, ALICE, "subscribe", "foo")


def test_settings_are_checked_before_policies(answers: Answers) -> None:
    answers.allowed |= {"foo", "bar"}
    assert not may(rls(answers, publish="off"), ALICE, "publish", "foo")
    assert not may(rls(answers, "optional", anonymous_role="authenticated"), None, "publish", "foo")
    assert may(rls(answers, public_channels=("b*",)), ALICE, "subscribe", "bar")
    assert answers.asked == []


def test_answer_is_cached_for_a_limited_time(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("socketio_pg.access.permissions.time.monotonic", lambda: now)
    answers.allowed.add("foo")
    permissions = rls(answers, permission_cache_seconds=10.0)
    for at, channel, asked in [
        (0.0, "foo", 1), (9.9, "foo", 1), (10.0, "foo", 2),
        (20.0, "bar", 3), (20.9, "bar", 3), (21.0, "bar", 4),
    ]:  # fmt: skip
        now = at
        assert may(permissions, ALICE, "subscribe", channel) == (channel == "foo")
        assert len(answers.asked) == asked
    # Each client, action and channel is a separate question.
    may(permissions, Claims({"sub": "bob", "role": "authenticated"}), "subscribe", "bar")
    may(permissions, ALICE, "publish", "bar")
    assert len(answers.asked) == 6


def test_cache_size_is_limited(answers: Answers) -> None:
    permissions = rls(answers)
    permissions.max_remembered = 10
    for number in range(100):
        may(permissions, ALICE, "subscribe", str(number))
    assert len(permissions._remembered) == 10
    may(permissions, ALICE, "subscribe", "99")
    assert len(answers.asked) == 100


def test_zero_disables_the_cache(answers: Answers) -> None:
    permissions = rls(answers, permission_cache_seconds=0.0)
    for _ in range(3):
        may(permissions, ALICE, "subscribe", "foo")
    assert len(answers.asked) == 3


def test_concurrent_equal_questions_are_asked_once(answers: Answers) -> None:
    answers.allowed.add("foo")
    answers.gate = green.Event()
    permissions = rls(answers)
    results: list[bool] = []
    threads = [green.spawn(lambda: results.append(may(permissions, ALICE, "subscribe", "foo"))) for _ in range(50)]
    green.sleep()
    answers.gate.send()
    for thread in threads:
        thread.wait()
    assert results == [True] * 50
    assert len(answers.asked) == 1


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (DatabaseUnavailableError("away"), DatabaseUnavailableError),
        (DatabaseError("refused"), DatabaseError),
        (LogNotInstalledError("not installed"), DatabaseRefusedError),
        (ValueError("a bug"), ValueError),
    ],
    ids=repr,
)
def test_error_denies_permission(answers: Answers, error: Exception, seen: type[Exception]) -> None:
    answers.allowed.add("foo")
    answers.error = error
    answers.gate = green.Event()
    permissions = rls(answers)
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            permissions.require(ALICE, "subscribe", "foo")
        except Exception as found:
            raised.append(found)

    threads = [green.spawn(ask) for _ in range(3)]
    green.sleep()
    answers.gate.send()
    for thread in threads:
        thread.wait()
    assert [type(found) for found in raised] == [seen] * 3
    # Errors are not cached.
    answers.error = None
    assert may(permissions, ALICE, "subscribe", "foo")


@pytest.mark.parametrize("changed", ["foo", None], ids=["the channel", "all"])
def test_answer_from_before_a_change_is_not_reused(answers: Answers, changed: str | None) -> None:
    answers.allowed.add("foo")
    permissions = rls(answers)
    answers.gate = gate = green.Event()
    mark = permissions.mark()
    results: dict[str, bool] = {}

    def ask(name: str) -> None:
        results[name] = may(permissions, ALICE, "subscribe", "foo")

    threads = [green.spawn(ask, "before")]
    green.sleep()
    answers.allowed.clear()
    permissions.forget("bar")
    assert not permissions.is_overtaken("foo", mark)
    permissions.forget(changed)
    assert permissions.is_overtaken("foo", mark)
    threads += [green.spawn(ask, name) for name in ("after", "after that")]
    green.sleep()
    gate.send()
    for thread in threads:
        thread.wait()
    # A caller from before the change detects with is_overtaken() that its answer is outdated, and asks again.
    assert results == {"before": True, "after": False, "after that": False}
    assert len(answers.asked) == 2
    assert not may(permissions, ALICE, "subscribe", "foo")
    assert not permissions.is_overtaken("foo", permissions.mark())


def test_many_changes_of_other_channels_do_not_block_a_check(answers: Answers) -> None:
    answers.allowed.add("foo")
    permissions = rls(answers)
    permissions.max_remembered = 50
    ask: Callable[[Question], bool] = answers.ask

    def changing(question: Question) -> bool:
        for number in range(200):
            permissions.forget(f"other-{number}")
        return ask(question)

    answers.ask = changing  # type: ignore[method-assign]
    assert may(permissions, ALICE, "subscribe", "foo")
    assert len(permissions._changed) <= 50


@pytest.mark.parametrize(
    "settings",
    [
        {"allowed_roles": ("authenticated",)},
        {"anonymous_role": "anon"},
        {"authorization": "claims", "allowed_roles": ("authenticated",)},
        {"authorization": "rls"},
    ],
    ids=str,
)
def test_incompatible_settings_are_refused(answers: Answers, settings: dict[str, Any]) -> None:
    """Without this check, a forgotten AUTHORIZATION=rls would silently allow everything."""
    with pytest.raises(ConfigurationError, match="AUTHORIZATION=rls"):
        Permissions(Settings(**settings), "required", answers)


def test_recheck_ignores_the_cache(answers: Answers) -> None:
    answers.allowed.add("foo")
    permissions = rls(answers, public_channels=("open",))
    assert may(permissions, ALICE, "subscribe", "foo")
    answers.allowed.clear()
    assert may(permissions, ALICE, "subscribe", "foo")
    assert not permissions.recheck(ALICE, "foo")
    assert not may(permissions, ALICE, "subscribe", "foo")
    assert permissions.recheck(ALICE, "open")
    assert not permissions.recheck(Claims({"role": "postgres"}), "foo")
