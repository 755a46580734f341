"""One channel in the inspector: its subscribers, members and messages, and who may do what, by which policy."""

import functools
from collections.abc import Callable
from typing import Any

import orjson

from socketio_pg.access.explaining import Explainer
from socketio_pg.access.tokens import Claims
from socketio_pg.control.control import Control
from socketio_pg.core import green
from socketio_pg.core.channels import validate_channel
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import DatabaseError, InvalidRequestError, LogNotInstalledError
from socketio_pg.core.messages import EncodedMessage, Position
from socketio_pg.core.patterns import is_pattern, validate_pattern
from socketio_pg.core.rules import Rules
from socketio_pg.inspector import requests
from socketio_pg.inspector.channels import ChannelsApi
from socketio_pg.inspector.routes import Routes
from socketio_pg.inspector.trying import to_wire
from socketio_pg.log import channel_reader
from socketio_pg.log.log import ReplayPage
from socketio_pg.postgres.looking import Looking
from socketio_pg.presence.presence import Presence
from socketio_pg.pubsub.pubsub import PubSub

#: Subscribers that are shown, and roles whose permissions are.
MAX_CLIENTS, MAX_ROLES = 100, 20


class ChannelApi:
    """The requests about one channel, or pattern. ``channels`` has the list, ``mode`` is the effective AUTH."""

    #: Seconds for the members: the database may be down.
    members_seconds = 2.0

    def __init__(
        self,
        settings: Settings,
        mode: str,
        channels: ChannelsApi,
        control: Control,
        looking: Looking,
        pubsub: PubSub,
        presence: Presence,
        explainer: Explainer,
    ) -> None:
        self._settings = settings
        self._mode = mode
        self._channels = channels
        self._control = control
        self._looking = looking
        self._pubsub = pubsub
        self._rules: Rules = pubsub.rules
        self._presence = presence
        self._explainer = explainer

    def add_to(self, routes: Routes) -> None:
        """Add the requests."""
        routes.get("channel", self.channel)
        routes.get("channel/access", self.access)
        routes.get("channel/history", self.history)

    def channel(self) -> dict[str, Any]:
        """``GET channel``."""
        name = _name()
        pattern = is_pattern(name)
        listed = self._control.channel(name)
        row, problem = self._channels.one(listed, name)
        log = self._pubsub.log
        clients, more = [], 0
        for one in listed.rows:
            where = {"node": one["node"], "worker": one["worker"]}
            clients += [client | where for client in one["clients"]]
            more += one["clients_more"]
        found: dict[str, Any] = row | {
            "by_process": [
                {"node": one["node"], "worker": one["worker"], "subscribers": _count(one)} for one in listed.rows
            ],
            "rule_columns": None if pattern else self._rule_columns(name),
            "clients": clients[:MAX_CLIENTS],
            "clients_more": more + max(0, len(clients) - MAX_CLIENTS),
            "epoch": log.epoch,
            "position": log.position if log.installed else None,
            "measured": listed.found["measured"],
        }
        problems = [] if problem is None else [problem]
        parts: list[tuple[str, Callable[[], Any]]] = []
        if not pattern and problem is None:
            parts = [
                ("stored", functools.partial(self._stored, name)),
                ("members", functools.partial(self._members, name)),
            ]
        found |= {"stored": None, "stored_more": False, "oldest_position": None, "oldest_at": None}
        if not pattern:
            found["members"] = None
        for (part, _), answer in zip(parts, green.run_together([read for _, read in parts]), strict=True):
            if isinstance(answer, (DatabaseError, LogNotInstalledError, green.TimedOut)):
                problems.append(f"{part}: {answer}")
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found |= answer
        return found | {"problems": problems} | listed.answered()

    def access(self) -> dict[str, Any]:
        """``GET channel/access``."""
        name = _name()
        who: list[tuple[str, str | None, Claims | None]] = [("anonymous", None, None)]
        if self._settings.authorization == "rls":
            claim = self._settings.jwt_role_claim
            roles = self._explainer.roles[:MAX_ROLES]
            who += [(f"role {role}", role, Claims({claim: role})) for role in roles]
        elif self._mode != "off":
            who.append(("authenticated", None, Claims({})))
        explained = self._explainer.explain_several([claims for _, _, claims in who], name)
        return {
            "channel": name,
            "authorization": self._settings.authorization,
            "auth": self._mode,
            "who": [
                {"who": words, "role": role, "actions": to_wire(found)}
                for (words, role, _), found in zip(who, explained, strict=True)
            ],
            "policies": [policy.to_wire() for policy in self._explainer.policies()],
        }

    def history(self) -> dict[str, Any]:
        """``GET channel/history``: a page of the log, oldest first."""
        name = validate_channel(requests.text("name"))
        limit = requests.number("limit", requests.DEFAULT_LIMIT, 1, requests.MAX_LIMIT)
        since, before = requests.text("since"), requests.text("before")
        if since and before:
            raise InvalidRequestError("send either since or before")
        if before:
            page = self._before(name, requests.number("before", 0, 1, 2**53), limit)
        elif since:
            page = self._pubsub.read_page(name, since=since, limit=limit)
        else:
            page = self._pubsub.read_page(name, history=limit, limit=limit)
        found = page.to_wire(name)
        if requests.number("text", 0, 0, 1):
            found["messages"] = [_as_text(message) for message in page.messages]
        return found

    def _before(self, name: str, position: int, limit: int) -> ReplayPage:
        """Return the messages before a position, at most ``limit``."""
        self._pubsub.wait_log()
        log = self._pubsub.log
        if log.epoch is None:
            raise LogNotInstalledError("the log is not installed in the database: run 'socketio-pg init'")
        after = log.before(name, position, limit)
        page = self._pubsub.read_page(name, since=Position(epoch=log.epoch, position=after), limit=limit)
        page.messages = [one for one in page.messages if one.position is not None and one.position < position]
        return page

    def _rule_columns(self, name: str) -> list[dict[str, Any]]:
        return [
            {"column": column, "value": value, "source": origin.source, "pattern": origin.pattern}
            for column, (value, origin) in self._rules.explain(name).items()
        ]

    def _stored(self, name: str) -> dict[str, Any]:
        stored = self._looking.run(lambda connection: channel_reader.read_stored(connection, name))
        return {
            "stored": stored.count,
            "stored_more": stored.more,
            "oldest_position": stored.oldest_position,
            "oldest_at": stored.oldest_at,
        }

    def _members(self, name: str) -> dict[str, Any]:
        with green.timeout(self.members_seconds):
            summary = self._presence.summary(name)
        summary = orjson.loads(orjson.dumps(summary))
        found = {"count": summary["count"], "members": summary.get("members"), "stale": summary.get("stale", False)}
        return {"members": found}


def _name() -> str:
    name = requests.text("name")
    return validate_pattern(name) if name is not None and is_pattern(name) else validate_channel(name)


def _count(row: dict[str, Any]) -> int:
    return int(row["sockets"] + row["streams"] + row["python"])


def _as_text(message: EncodedMessage) -> dict[str, Any]:
    """Return a message with its payload as the JSON text that was published: a browser would round large numbers."""
    wire = message.to_wire()
    del wire["payload"]
    return wire | {"text": message.payload_json}
