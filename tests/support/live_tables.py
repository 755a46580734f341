"""Clients of live tables that keep the rows as docs/live-tables.md says, and check what they get."""

import json
import threading
from typing import Any

from tests.support.clients import SocketClient
from tests.support.patience import PATIENCE


def key_of(pk: dict[str, Any]) -> str:
    return json.dumps(pk, sort_keys=True)


class TableClient(SocketClient):
    """A client with one live table. ``rows`` are its rows by their keys.

    With ``strict`` it fails on a change that does not belong to the rows: an INSERT of a row that it has, or an UPDATE
    or DELETE of one that it does not have. With ``follow`` it subscribes again after each loss of its connection.
    """

    EVENTS = (*SocketClient.EVENTS, "snapshot", "live")

    def __init__(self, url: str, *, strict: bool = False, follow: bool = False, **options: Any) -> None:
        #: Unset to make the client read nothing.
        self.reading = threading.Event()
        self.reading.set()
        self._follow = follow
        self._request: dict[str, Any] = {}
        self._epoch = ""
        self.rows: dict[str, dict[str, Any]] = {}
        self.log: list[tuple[str, Any]] = []
        self.problems: list[str] = []
        self.position = 0
        self.snapshots = 0
        self._strict = strict
        self._key: list[str] = []
        self._next: dict[str, dict[str, Any]] = {}
        self._changed = threading.Condition()
        super().__init__(url, **options)

    def table(self, name: str = "public.orders", **more: Any) -> dict[str, Any]:
        """Subscribe. Return the answer."""
        self._request = {"table": name, **more}
        answer: dict[str, Any] = self.call("subscribe", self._request)
        if not self._epoch and answer["ok"]:
            self._epoch = answer["epoch"]
        return answer

    def __enter__(self) -> "TableClient":
        return self

    def wait_rows(self, expected: dict[str, Any] | list[dict[str, Any]], by: str = "id") -> None:
        """Wait until the client has these rows and no others."""
        wanted = expected if isinstance(expected, dict) else {key_of({by: row[by]}): row for row in expected}
        with self._changed:
            if not self._changed.wait_for(lambda: self.rows == wanted, PATIENCE):
                missing = {key: row for key, row in wanted.items() if self.rows.get(key) != row}
                extra = {key: row for key, row in self.rows.items() if key not in wanted}
                found = f"last {self.log[-5:]}, {self.problems}, {self.events_of_the_connection()}"
                raise AssertionError(f"missing {missing}, extra {extra}; {found}")

    def events_of_the_connection(self) -> dict[str, int]:
        """Return how many events about the connection have arrived."""
        return {name: self.pending(name) for name in ("connect", "disconnect", "error", "gap", "unsubscribed")}

    def _recorder(self, name: str) -> Any:
        record = super()._recorder(name)

        def received(*arguments: Any) -> None:
            self.reading.wait(PATIENCE)
            with self._changed:
                if arguments and isinstance(arguments[0], dict) and "table" in arguments[0]:
                    self.log.append((name, arguments[0]))
                    self._apply(name, arguments[0])
                elif name == "connect" and self._follow and self._request:
                    since = {"since": {"epoch": self._epoch, "position": self.position}} if self.position else {}
                    self.io.emit("subscribe", self._request | since)
                elif name == "error" and self._follow:
                    threading.Timer(0.2, self.io.emit, ("subscribe", self._request)).start()
                record(*arguments)
                self._changed.notify_all()

        return received

    def _apply(self, name: str, body: dict[str, Any]) -> None:
        if name == "snapshot":
            if body["first"]:
                self._next, self._key, self._epoch = {}, body["key"], body["epoch"]
                self.position = body["position"]
                self.snapshots += 1
            for row in body["rows"]:
                self._next[key_of({column: row[column] for column in self._key})] = row
            if body["last"]:
                self.rows = self._next
        elif name == "event":
            if body["position"] < self.position:
                self.problems.append(f"position {body['position']} after {self.position}")
            self.position = body["position"]
            self._change(body["payload"])
        elif name == "live":
            self.position = max(self.position, body["position"])

    def _change(self, payload: dict[str, Any]) -> None:
        if payload["op"] == "TRUNCATE":
            self.rows = {}
            return
        key = key_of(payload["pk"])
        old = key_of(payload["old_pk"]) if "old_pk" in payload else key
        if self._strict and (old in self.rows) is (payload["op"] == "INSERT"):
            self.problems.append(f"{payload} although {self.rows.get(old)}")
        rows = dict(self.rows)
        rows.pop(old, None)
        if payload["op"] != "DELETE":
            rows[key] = payload["new"]
        self.rows = rows
