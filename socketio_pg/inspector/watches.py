"""Watches in the inspector: the watched tables, and switching one on or off with the server's role."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from socketio_pg.control.control import Control
from socketio_pg.core.channels import match_pattern
from socketio_pg.core.errors import ForbiddenError, InvalidRequestError
from socketio_pg.core.listing import matches
from socketio_pg.inspector import requests
from socketio_pg.inspector.routes import Routes
from socketio_pg.postgres import watches
from socketio_pg.postgres.looking import Looking


class WatchesApi:
    """The requests about watches. ``live_tables`` is the setting LIVE_TABLES.

    ``debug``: whether a watch may have a condition, which is SQL with the rights of the schema's owner.
    """

    def __init__(self, looking: Looking, control: Control, live_tables: Collection[str], debug: bool) -> None:
        self._looking = looking
        self._control = control
        self._live_tables = live_tables
        self._debug = debug

    def add_to(self, routes: Routes) -> None:
        """Add the requests."""
        routes.get("watches", self.watches)
        routes.post("watches/set", self.set, needs="act")

    def watches(self) -> dict[str, Any]:
        """``GET watches``."""
        search = requests.text("search") or ""
        found, (role, reason), tables = self._looking.run(
            lambda connection: (
                watches.read(connection), watches.rights(connection), watches.read_tables(connection)
            )
        )  # fmt: skip
        shown = [one for one in found if matches(search, (one["table"], one["channel"]))]
        self._add_rates(shown)
        return {
            "watches": shown,
            "total": len(shown),
            "role": role,
            "may_switch": reason is None,
            "reason": reason,
            "tables": tables,
        }

    def set(self, body: dict[str, Any]) -> dict[str, Any]:
        """``POST watches/set``."""
        table, enabled = body.get("table"), body.get("enabled")
        if not isinstance(table, str) or not _is("text", table) or not 1 <= len(table) <= 1_000:
            raise InvalidRequestError("table must be the name of a table, such as public.orders")
        if not isinstance(enabled, bool):
            raise InvalidRequestError("enabled must be true or false")
        options = _options(body)
        if "when" in options and not self._debug:
            raise ForbiddenError(
                "a condition (when) is SQL, which the inspector takes only in development (DEBUG=1): "
                "call socketio_pg.watch() in psql"
            )
        seconds = self._looking.seconds + 4.0  # a table may be in use
        if enabled:
            return self._looking.run(lambda connection: self._switch_on(connection, table, options), seconds)
        channel = options.pop("channel", None)
        if options:
            raise InvalidRequestError(f"{next(iter(options))} has no meaning when a watch is switched off")
        return self._looking.run(lambda connection: self._switch_off(connection, table, channel), seconds)

    def _switch_on(self, connection: Any, table: str, options: Mapping[str, Any]) -> dict[str, Any]:
        channel, notices = watches.watch(connection, self._find(connection, table), options)
        found = [one for one in self._of(connection, table) if one["channel"] == channel]
        return {
            "table": table,
            "channel": channel,
            "enabled": True,
            "notices": notices,
            "watch": found[0] if found else None,
        }

    def _switch_off(self, connection: Any, table: str, channel: str | None) -> dict[str, Any]:
        number = self._find(connection, table)
        before = [one for one in self._of(connection, table) if channel in (None, one["channel"])]
        removed = watches.unwatch(connection, number, channel)
        return {"table": table, "channel": channel, "enabled": False, "removed": removed, "watches": before}

    @staticmethod
    def _find(connection: Any, table: str) -> int:
        number = watches.find_table(connection, table)
        if number is None:
            raise InvalidRequestError(f"the table {table} does not exist: write SCHEMA.TABLE")
        return number

    @staticmethod
    def _of(connection: Any, table: str) -> list[dict[str, Any]]:
        """Return the watches of a table, by its name as it was given."""
        number = watches.find_table(connection, table)
        return [one for one in watches.read(connection) if watches.find_table(connection, one["table"]) == number]

    def _add_rates(self, shown: list[dict[str, Any]]) -> None:
        patterns = {one["channel"]: as_pattern(one["channel"]) for one in shown}
        rates = self._control.rates(sorted(set(patterns.values())))
        for one in shown:
            one["messages_in"] = rates.get(patterns[one["channel"]])
            one["live"] = any(match_pattern(live, one["table"]) for live in self._live_tables)


def as_pattern(template: str) -> str:
    """Return the pattern of the channels that a template with placeholders gives: ``orders:{id}`` → ``orders:*``."""
    pattern = ""
    for part in template.split("{"):
        head, closed, rest = part.partition("}")
        pattern += f"*{rest}" if closed else head
    while "**" in pattern:
        pattern = pattern.replace("**", "*")
    return pattern


def _options(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of watch() that a request has; those that are null are left out, but for ``bulk_limit``.

    Raises :class:`InvalidRequestError`.
    """
    unknown = body.keys() - {*watches.TYPES, "table", "enabled"}
    if unknown:
        raise InvalidRequestError(f"{min(unknown)} is not an option: options are {', '.join(watches.TYPES)}")
    found: dict[str, Any] = {}
    for name, type in watches.TYPES.items():
        value = body.get(name)
        if value is None and not (name == "bulk_limit" and name in body):
            continue
        if not _is(type, value):
            raise InvalidRequestError(f"{name} must be {_WORDS[type]}")
        found[name] = value
    return found


_WORDS = {
    "text": "a text",
    "text[]": "a list of texts",
    "boolean": "true or false",
    "integer": "a whole number, or null",
}


def _is(type: str, value: object) -> bool:
    match type:
        case "text":
            # Characters that PostgreSQL cannot store; \ud800 to \udfff are lone surrogates.
            return isinstance(value, str) and re.search("[\0\ud800-\udfff]", value) is None
        case "text[]":
            return isinstance(value, list) and all(_is("text", one) for one in value)
        case "boolean":
            return isinstance(value, bool)
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
    return value is None or whole
