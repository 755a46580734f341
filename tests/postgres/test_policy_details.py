"""The policies that decide about a question: which applies, which allows and which refuses, and those that fail."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from socketio_pg.access.authentication import Authenticator
from socketio_pg.access.explaining import Explainer, Explanation
from socketio_pg.access.permissions import Permissions
from socketio_pg.access.policies import Policies
from socketio_pg.access.policy_details import PolicyDetails
from socketio_pg.access.tokens import Claims
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import DatabaseUnavailableError
from socketio_pg.core.rules import Rule, Rules
from socketio_pg.postgres.database import Database
from tests.support.policies import PolicyDatabase, nothing_is_left, question
from tests.support.tokens import SECRET


@pytest.fixture(scope="module")
def details(database: PolicyDatabase) -> PolicyDetails:
    return PolicyDetails(Database(database.server_url), 10.0)


@pytest.fixture
def restricted(database: PolicyDatabase) -> Iterator[PolicyDatabase]:
    """The database with a restrictive policy, and a permissive one that fails."""
    database.sql(
        """
        CREATE POLICY "not the attic" ON socketio_pg.messages AS RESTRICTIVE FOR SELECT TO authenticated
            USING (channel NOT LIKE '%attic%' AND channel ~ '^[a-z:]+$');
        CREATE POLICY "broken" ON socketio_pg.messages FOR SELECT TO authenticated
            USING (CASE WHEN channel = 'broken' THEN 1 / (length(channel) - 6) = 1 ELSE false END);
        CREATE POLICY "attics" ON socketio_pg.messages FOR SELECT TO authenticated USING (messages.channel = 'attic');
        """
    )
    yield database
    for name in ("not the attic", "broken", "attics"):
        database.sql(f'DROP POLICY "{name}" ON socketio_pg.messages')


def explainer(database: PolicyDatabase, rules: Rules | None = None, url: str | None = None, **more: Any) -> Explainer:
    wanted: dict[str, Any] = {
        "auth": "optional",
        "jwt_secret": SECRET,
        "authorization": "rls",
        "allowed_roles": ("authenticated", "service_role"),
        "anonymous_role": "anon",
    }
    settings = Settings(**(wanted | more))
    found = Database(url or database.server_url)
    authenticator = Authenticator(settings, Flask(__name__))
    permissions = Permissions(settings, authenticator.mode, Policies(found, 1.0))
    return Explainer(settings, authenticator, permissions, rules or Rules(), found)


def by_action(explanations: list[Explanation]) -> dict[str, Explanation]:
    return {one.action: one for one in explanations}


def test_policies_that_let_through_are_named(details: PolicyDetails, restricted: PolicyDatabase) -> None:
    [kitchen, lobby, own] = details.evaluate(
        [question("subscribe", "kitchen"), question("subscribe", "lobby", "carol"), question("subscribe", "user:alice")]
    )
    assert (kitchen.allowed, kitchen.failure) == (True, None)
    results = {one.policy.name: one.result for one in kitchen.policies}
    assert results == {
        "attics": False, "broken": False, "members may read their rooms": True, "not the attic": True,
        "own channel": False, "the lobby": False,
    }  # fmt: skip
    assert kitchen.policies[-1].policy.name == "not the attic"
    assert not kitchen.policies[-1].policy.permissive
    assert kitchen.reason("authenticated", "subscribe") == 'the policy "members may read their rooms" allows it'
    assert lobby.reason("authenticated", "subscribe") == 'the policy "the lobby" allows it'
    assert own.reason("authenticated", "subscribe") == 'the policy "own channel" allows it'
    assert nothing_is_left(restricted)


def test_policies_that_refuse_are_named(details: PolicyDetails, restricted: PolicyDatabase) -> None:
    [attic, cellar, broken, publish, unknown, exempt] = details.evaluate(
        [
            question("subscribe", "attic"),
            question("subscribe", "cellar"),
            question("subscribe", "broken"),
            question("publish", "cellar"),
            question("subscribe", "lobby", role="nobody_has_this_name"),
            question("subscribe", "cellar", role="service_role"),
        ]
    )
    assert not attic.allowed
    assert attic.reason("authenticated", "subscribe") == 'the policy "not the attic", which is restrictive, refuses it'
    assert "attics" in {one.policy.name for one in attic.policies if one.result}
    assert not cellar.allowed
    assert cellar.reason("authenticated", "subscribe").endswith("do not allow it")
    [failed] = [one for one in broken.policies if one.result is None]
    assert (failed.policy.name, failed.error) == ("broken", "division by zero")
    assert (broken.allowed, broken.failure) == (False, "22012 division by zero")
    assert (publish.allowed, publish.failure) == (False, None)
    assert [one.policy.command for one in publish.policies] == ["INSERT"]
    assert publish.reason("authenticated", "publish") == 'the policy "some may write" does not allow it'
    assert not unknown.allowed
    assert "nobody_has_this_name" in (unknown.failure or "")
    assert exempt.allowed
    assert exempt.reason("service_role", "subscribe") == "the role service_role has BYPASSRLS: no policy applies to it"
    assert nothing_is_left(restricted)


def test_explanations_name_what_decides_before_the_policies(database: PolicyDatabase) -> None:
    rules = Rules(configured={"quiet:*": Rule(presence=False, ephemeral=False)})
    explain = explainer(database, rules, publish="authenticated", public_channels=("open:*",)).explain
    alice = Claims({"sub": "alice", "role": "authenticated"})
    found = by_action(explain(alice, "kitchen"))
    assert {action: (one.allowed, one.by) for action, one in found.items()} == {
        "subscribe": (True, "policies"), "publish": (True, "policies"), "presence": (True, "policies"),
        "join": (True, "policies"), "ephemeral": (True, "policies"),
    }  # fmt: skip
    wire = found["publish"].to_wire()
    assert wire["reason"] == 'the policy "some may write" allows it'
    assert [(one["name"], one["result"]) for one in wire["policies"]] == [("some may write", True)]
    assert "members.writes" in wire["policies"][0]["expression"]
    json.dumps(wire)

    quiet = by_action(explain(alice, "quiet:1"))
    assert (quiet["presence"].by, quiet["join"].by, quiet["ephemeral"].by) == ("rule", "rule", "rule")
    assert quiet["presence"].reason == "the rule 'quiet:*' does not allow presence in this channel"
    assert [one.by for one in explain(alice, "socketio_pg_x")] == ["name"] * 5
    assert [one.reason for one in explain(alice, "x" * 64, ["publish"])] == [
        "channel must have at most 63 bytes of UTF-8, this one has 64"
    ]
    [public] = explain(alice, "open:1", ["subscribe"])
    assert (public.allowed, public.by, public.evaluation) == (True, "PUBLIC_CHANNELS", None)
    [stranger] = explain(Claims({"sub": "eve", "role": "postgres"}), "kitchen", ["subscribe"])
    assert (stranger.allowed, stranger.by) == (False, "ALLOWED_ROLES")
    [expired] = explain(Claims({"sub": "eve", "role": "authenticated", "exp": 1}), "kitchen", ["subscribe"])
    assert (expired.allowed, expired.by) == (False, "exp")
    anonymous = by_action(explain(None, "lobby"))
    assert (anonymous["subscribe"].allowed, anonymous["subscribe"].by) == (True, "policies")
    assert (anonymous["publish"].allowed, anonymous["publish"].by) == (False, "PUBLISH")
    [pattern] = explain(alice, "user:*")
    assert (pattern.action, pattern.allowed, pattern.by) == ("subscribe", True, "policies")
    assert "asked for each channel" in pattern.reason
    [refused] = explainer(database, auth="required", anonymous_role=None).explain(None, "lobby", ["subscribe"])
    assert (refused.allowed, refused.by) == (False, "AUTH")


def test_explanations_agree_with_the_decisions(database: PolicyDatabase, policies: Policies) -> None:
    explain = explainer(database).explain
    for sub in ("alice", "bob", "carol"):
        for channel in ("kitchen", "lobby", "user:bob", "cellar"):
            for role in ("authenticated", "service_role"):
                for one in explain(Claims({"sub": sub, "role": role}), channel):
                    assert one.allowed is policies.ask(question(one.action, channel, sub, role)), one


def test_explanations_need_a_database_only_for_policies(database: PolicyDatabase) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    alice = Claims({"sub": "alice", "role": "authenticated"})
    with pytest.raises(DatabaseUnavailableError):
        explainer(database, url=nowhere).explain(alice, "kitchen")
    settings: dict[str, Any] = {"authorization": "off", "allowed_roles": (), "anonymous_role": None}
    without = explainer(database, url=nowhere, **settings)
    found = by_action(without.explain(alice, "kitchen"))
    assert all(one.allowed for one in found.values())
    assert found["subscribe"].by == "AUTHORIZATION"
    assert without.policies() == []
    [anonymous] = without.explain(None, "kitchen", ["subscribe"])
    assert (anonymous.allowed, anonymous.by) == (False, "PUBLIC_CHANNELS")
