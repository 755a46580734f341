"""Explains permissions: whether a client with certain claims may do an action in a channel, and what decides that.

For operators. The answers are those of `permissions`, without its cache; `policy_details` names the policies.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from socketio_pg.access.authentication import Authenticator
from socketio_pg.access.permissions import Decision, Permissions
from socketio_pg.access.policy_details import Evaluation, Policy, PolicyDetails
from socketio_pg.access.questions import Action
from socketio_pg.access.tokens import Claims
from socketio_pg.core.channels import validate_channel
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import InvalidChannelError, InvalidRequestError
from socketio_pg.core.patterns import is_pattern, validate_pattern
from socketio_pg.core.rules import Rules
from socketio_pg.postgres.database import Database

#: The actions that an explanation has. Of a pattern only the first.
ACTIONS: tuple[Action, ...] = ("subscribe", "publish", "presence", "join", "ephemeral")
#: The columns of rules for channels that forbid an action.
_COLUMNS: dict[Action, str] = {"presence": "presence", "join": "presence", "ephemeral": "ephemeral"}

#: What each way to allow an action means.
_ALLOWING: dict[str, str] = {
    "PUBLIC_CHANNELS": "PUBLIC_CHANNELS has this channel: every client may subscribe",
    "AUTHORIZATION": "AUTHORIZATION is off: every authenticated client may do this",
    "AUTH": "AUTH is off: every client may do this",
    "PUBLISH": "PUBLISH allows it to this client, and AUTHORIZATION is off",
    "PRESENCE": "PRESENCE allows it to this client, and AUTHORIZATION is off",
    "EPHEMERAL": "EPHEMERAL allows it to this client, and AUTHORIZATION is off",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """Whether an action is allowed, what decides (``by``), and one sentence about it.

    ``by``: ``name`` (the channel's), ``exp`` (the token's), ``rule`` (one for channels), ``claims``, ``policies``, or
    the name of a setting. ``evaluation`` has the policies, if they were asked.
    """

    action: Action
    allowed: bool
    by: str
    reason: str
    evaluation: Evaluation | None = None

    def to_wire(self) -> dict[str, Any]:
        """Return it as JSON."""
        policies = None if self.evaluation is None else [one.to_wire() for one in self.evaluation.policies]
        return {"allowed": self.allowed, "by": self.by, "reason": self.reason, "policies": policies}


class Explainer:
    """Explains the permissions of one server. ``rules`` are those for channels."""

    def __init__(
        self,
        settings: Settings,
        authenticator: Authenticator,
        permissions: Permissions,
        rules: Rules,
        database: Database,
    ) -> None:
        self._settings = settings
        self._authenticator = authenticator
        self._permissions = permissions
        self._rules = rules
        self._details = PolicyDetails(database, settings.permission_timeout)

    @property
    def roles(self) -> list[str]:
        """The roles that clients may have."""
        return sorted(self._permissions.roles)

    def role_of(self, claims: Claims | None) -> str | None:
        """Return the role of a client with AUTHORIZATION=rls, whether it is allowed or not; None without one."""
        return self._permissions.named_role(None if self._authenticator.mode == "off" else claims)

    def policies(self) -> list[Policy]:
        """Return all policies; none unless AUTHORIZATION=rls. May wait, and raises as :class:`PolicyDetails`."""
        return self._details.read() if self._settings.authorization == "rls" else []

    def explain(self, claims: Claims | None, channel: object, actions: Sequence[Action] = ACTIONS) -> list[Explanation]:
        """Return an explanation of each action of a client with ``claims`` (None: an anonymous one). May wait.

        A pattern has only the action ``subscribe``. Raises :class:`InvalidRequestError` for an unknown action, and as
        :class:`PolicyDetails` if the policies cannot be asked.
        """
        return self.explain_several([claims], channel, actions)[0]

    def explain_several(
        self, clients: Sequence[Claims | None], channel: object, actions: Sequence[Action] = ACTIONS
    ) -> list[list[Explanation]]:
        """Return what :meth:`explain` returns, for each of several clients."""
        for action in actions:
            if action not in ACTIONS:
                raise InvalidRequestError(f"actions must be some of {', '.join(ACTIONS)}")
        pattern = isinstance(channel, str) and is_pattern(channel)
        if pattern:
            actions = [action for action in actions if action == "subscribe"]
        try:
            name = validate_pattern(channel) if pattern else validate_channel(channel)
        except InvalidChannelError as error:
            return [[Explanation(action, False, "name", error.message) for action in actions] for _ in clients]
        decisions = [
            [self._decide(claims, "pattern" if pattern else action, name) for action in actions] for claims in clients
        ]
        questions = [one.question for of_client in decisions for one in of_client if one.question is not None]
        evaluations = iter(self._details.evaluate(questions) if questions else ())
        return [
            [
                self._explained(action, decision, evaluations)
                for action, decision in zip(actions, of_client, strict=True)
            ]
            for of_client in decisions
        ]

    def _explained(self, action: Action, decision: Decision, evaluations: Iterator[Evaluation]) -> Explanation:
        if decision.question is None:
            reason = decision.reason or _reason(decision, action)
            return Explanation(action, decision.reason is None, decision.by, reason)
        evaluation = next(evaluations)
        reason = evaluation.reason(decision.question.role, action)
        return Explanation(action, evaluation.allowed, decision.by, reason, evaluation)

    def _decide(self, claims: Claims | None, action: Action, channel: str) -> Decision:
        mode = self._authenticator.mode
        if claims is None and mode == "required":
            return Decision("AUTH", "anonymous clients are refused: AUTH is required")
        if mode == "off":
            claims = None  # the server reads no tokens
        elif claims is not None and (claims.expires_at or math.inf) + self._settings.jwt_leeway <= time.time():
            return Decision("exp", "the token has expired")
        column = _COLUMNS.get(action)
        if column is not None:
            value, origin = self._rules.explain(channel)[column]
            if value is False:
                return Decision("rule", f"the rule {origin.pattern!r} does not allow {column} in this channel")
        return self._permissions.decide(claims, action, channel)


def _reason(decision: Decision, action: Action) -> str:
    """Return why an action is allowed without a question to the policies."""
    if decision.by == "policies":
        return "the policies are asked for each channel that matches the pattern, at its first message"
    if decision.by == "claims":
        return f"the token's list {action} has a pattern that covers it"
    return _ALLOWING.get(decision.by, "allowed")
