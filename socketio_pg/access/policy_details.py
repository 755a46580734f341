"""Evaluates each row-level-security policy on ``socketio_pg.messages`` alone, to say which of them decides.

`policies` asks PostgreSQL for the decision itself; this is for people who want to know why. Everything is rolled back.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from socketio_pg.access.questions import INSERTING, Action, Question
from socketio_pg.core import green
from socketio_pg.core.errors import DatabaseError, DatabaseTimeoutError, DatabaseUnavailableError, LogNotInstalledError
from socketio_pg.postgres.database import Database, encode_text, fetch, fetch_as_is, is_busy, session
from socketio_pg.postgres.trust import verify

#: The part in the name of the connection.
_PART = "inspector"

# The expressions are written with names that are qualified outside pg_catalog, because `fetch` fixes the search_path.
_POLICIES = """
SELECT p.polname, p.polpermissive, p.polcmd::text,
    ARRAY(SELECT CASE r.id WHEN 0 THEN 'public' ELSE pg_get_userbyid(r.id) END FROM unnest(p.polroles) AS r (id)),
    pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)
FROM pg_policy AS p WHERE p.polrelid = 'socketio_pg.messages'::regclass ORDER BY NOT p.polpermissive, p.polname
"""

# As PostgreSQL finds them (has_privs_of_role): not those of roles whose rights need SET ROLE.
_APPLYING = """
SELECT p.polname FROM pg_policy AS p
WHERE p.polrelid = 'socketio_pg.messages'::regclass AND EXISTS (
    SELECT FROM unnest(p.polroles) AS r (id)
    WHERE CASE WHEN r.id = 0 THEN true ELSE pg_has_role(to_regrole(quote_ident(%s)), r.id, 'USAGE') END)
"""

_EXEMPT = "SELECT rolbypassrls FROM pg_roles WHERE rolname = %s"

_COMMANDS: Mapping[str, str] = {"r": "SELECT", "a": "INSERT", "w": "UPDATE", "d": "DELETE", "*": "ALL"}
#: `kind` of the row that a question is about, as in sql/3_permissions.sql.
_KINDS: Mapping[Action, str] = {"presence": "presence", "join": "presence", "ephemeral": "ephemeral"}


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy as it is written. ``command``: SELECT, INSERT or ALL; others decide nothing. A role may be ``public``.

    ``using`` and ``check`` are its expressions in SQL; None without one.
    """

    name: str
    permissive: bool
    command: str
    roles: Sequence[str]
    using: str | None
    check: str | None

    def expression(self, action: Action) -> str | None:
        """Return the expression that decides about an action; None if the policy has nothing to say about it."""
        if action in INSERTING:
            return (self.check or self.using or "true") if self.command in ("INSERT", "ALL") else None
        return (self.using or "true") if self.command in ("SELECT", "ALL") else None

    def to_wire(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "name": self.name,
            "permissive": self.permissive,
            "command": self.command,
            "roles": list(self.roles),
            "using": self.using,
            "check": self.check,
        }


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A policy that applies to a question, and its ``result``: None if it failed with ``error``."""

    policy: Policy
    expression: str
    result: bool | None
    error: str | None = None

    def to_wire(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "name": self.policy.name,
            "permissive": self.policy.permissive,
            "command": self.policy.command,
            "roles": list(self.policy.roles),
            "expression": self.expression,
            "result": self.result,
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The decision of all policies together, with each that applies. ``failure``: why it could not be made: refused.

    ``exempt``: the role has BYPASSRLS.
    """

    allowed: bool
    policies: Sequence[Evaluated] = field(default_factory=list)
    failure: str | None = None
    exempt: bool = False

    def reason(self, role: str, action: Action) -> str:
        """Return one sentence that names the policies that decide."""
        if self.failure is not None:
            return f"the decision failed, which refuses: {self.failure}"
        if self.exempt:
            return f"the role {role} has BYPASSRLS: no policy applies to it"
        command = "INSERT" if action in INSERTING else "SELECT"
        permissive = [one for one in self.policies if one.policy.permissive]
        if self.allowed:
            granting = _named([one for one in permissive if one.result])
            return f"{granting} {'allows' if _count(permissive) == 1 else 'allow'} it" if granting else "allowed"
        refusing = [one for one in self.policies if not one.policy.permissive and not one.result]
        if refusing:
            verb = "refuses" if len(refusing) == 1 else "refuse"
            return f"{_named(refusing)}, which is restrictive, {verb} it"
        if not permissive:
            return f"no permissive policy for {command} applies to the role {role}"
        return f"{_named(permissive)} {'does' if len(permissive) == 1 else 'do'} not allow it"


def _count(policies: Sequence[Evaluated]) -> int:
    return sum(bool(one.result) for one in policies)


def _named(policies: Sequence[Evaluated]) -> str:
    names = [f'"{one.policy.name}"' for one in policies]
    return f"the policy {names[0]}" if len(names) == 1 else f"the policies {', '.join(names)}" if names else ""


class PolicyDetails:
    """Reads and evaluates the policies in ``database``, each time on a new connection. ``timeout``: seconds for each.

    All methods wait, and raise :class:`DatabaseUnavailableError`, also when too many people ask,
    :class:`LogNotInstalledError` and :class:`DatabaseError`.
    """

    #: Connections at a time; seconds for all policies together.
    most, seconds = 3, 15.0

    def __init__(self, database: Database, timeout: float) -> None:
        self._database = database
        self._timeout = timeout
        self._busy = 0

    def read(self) -> list[Policy]:
        """Return all policies, the permissive ones first."""
        with self._session() as connection:
            return self._read(connection)

    def evaluate(self, questions: Sequence[Question]) -> list[Evaluation]:
        """Return what the policies say to each question."""
        with self._session() as connection:
            policies = self._read(connection)
            return [self._evaluate(connection, question, policies) for question in questions]

    @contextlib.contextmanager
    def _session(self) -> Iterator[Any]:
        if self._busy >= self.most:
            raise DatabaseUnavailableError("too many requests ask the policies at the moment: try again later")
        self._busy += 1
        try:
            with green.timeout(self.seconds), session(self._database, _PART) as connection:
                verify(self._database, connection)
                yield connection
        except green.TimedOut:
            raise DatabaseTimeoutError(f"the policies took longer than {self.seconds:g} s together") from None
        finally:
            self._busy -= 1

    def _read(self, connection: Any) -> list[Policy]:
        rows = fetch(connection, _POLICIES, seconds=self._timeout + 1.0)
        return [
            Policy(name, permissive, _COMMANDS[cmd], roles, using, check)
            for name, permissive, cmd, roles, using, check in rows
        ]

    def _evaluate(self, connection: Any, question: Question, policies: Sequence[Policy]) -> Evaluation:
        seconds = self._timeout + 1.0
        role = encode_text(connection, question.role)
        answer = self._decide(connection, question)
        failure = answer.removeprefix("failed: ") if answer.startswith("failed: ") else None
        if question.action in INSERTING and failure is not None and "row-level security" in failure:
            failure = None  # how PostgreSQL says no to an INSERT
        exempt = fetch(connection, _EXEMPT, role, seconds=seconds) == [(True,)]
        if (
            exempt
            or not fetch(connection, "SELECT to_regrole(quote_ident(%s)) IS NOT NULL", role, seconds=seconds)[0][0]
        ):
            return Evaluation(answer == "allowed", [], failure, exempt)
        applying = {name for (name,) in fetch(connection, _APPLYING, role, seconds=seconds)}
        evaluated = []
        for policy in policies:
            expression = policy.expression(question.action)
            if expression is not None and policy.name in applying:
                evaluated.append(self._evaluate_one(connection, question, policy, expression))
        return Evaluation(answer == "allowed", evaluated, failure)

    def _decide(self, connection: Any, question: Question) -> str:
        values = [question.action, encode_text(connection, question.role), question.claims]
        arguments = [[value] for value in [*values, encode_text(connection, question.channel)]]
        self._begin(connection)
        try:
            [(answer,)] = fetch_as_is(
                connection,
                f"SELECT socketio_pg.decide({'%s::pg_catalog.text[], ' * 4}1)",
                *arguments,
                seconds=self._timeout + 1.0,
            )
            return str(answer)
        finally:
            self._roll_back(connection)

    def _evaluate_one(self, connection: Any, question: Question, policy: Policy, expression: str) -> Evaluated:
        """Evaluate one policy with the client's role, claims and channel, on a row like the one of the question."""
        row = {"id": 0, "channel": question.channel, "kind": _KINDS.get(question.action, "event")}
        self._begin(connection)
        try:
            fetch_as_is(
                connection,
                "SELECT pg_catalog.set_config('request.jwt.claims', %s, true),"
                " pg_catalog.set_config('socketio_pg.channel', %s, true), pg_catalog.set_config('role', %s, true)",
                question.claims,
                encode_text(connection, question.channel),
                encode_text(connection, question.role),
                seconds=self._timeout + 1.0,
            )
            # An alias as the table's name: expressions with subqueries have it.
            [(result,)] = fetch_as_is(
                connection,
                f"SELECT ({expression.replace('%', '%%')})::pg_catalog.bool"
                " FROM pg_catalog.jsonb_populate_record(NULL::socketio_pg.messages, %s::pg_catalog.jsonb"
                " OPERATOR(pg_catalog.||) pg_catalog.jsonb_build_object('created_at', pg_catalog.now())) AS messages",
                encode_text(connection, json.dumps(row, ensure_ascii=False)),
                seconds=self._timeout + 1.0,
            )
            return Evaluated(policy, expression, bool(result))
        except (DatabaseError, LogNotInstalledError) as error:
            if isinstance(error, DatabaseError) and error.sqlstate is None:
                raise
            # PostgreSQL's own text: a table that a policy lacks is no missing log.
            text = str(error if error.__cause__ is None else error.__cause__).strip()
            return Evaluated(policy, expression, None, text.partition("\n")[0])
        finally:
            self._roll_back(connection)

    def _begin(self, connection: Any) -> None:
        fetch_as_is(
            connection, f"BEGIN; SET LOCAL statement_timeout = {int(self._timeout * 1000)}", seconds=self._timeout + 1.0
        )

    def _roll_back(self, connection: Any) -> None:
        if not is_busy(connection):
            fetch_as_is(connection, "ROLLBACK", seconds=self._timeout + 1.0)
