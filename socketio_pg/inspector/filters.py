"""Checks a filter of the tail while it is typed, with the server's own parser."""

import json
from typing import Any

from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.inspector.routes import Routes
from socketio_pg.pubsub.filters import MAX_BYTES, parse_filter


class FilterApi:
    """The request handler."""

    def add_to(self, routes: Routes) -> None:
        routes.post("filter", self.check)

    def check(self, body: dict[str, Any]) -> dict[str, Any]:
        """``POST /inspector/api/filter``: ``text`` as typed, or the object ``filter``. A wrong one is no error."""
        text = body.get("text")
        if ("text" in body) == ("filter" in body) or ("text" in body and not isinstance(text, str)):
            raise InvalidRequestError("send text, a string, or filter, an object")
        value = body.get("filter")
        if text is not None:
            if len(text) > 4 * MAX_BYTES:
                return _wrong(f"a filter has at most {MAX_BYTES} bytes")
            if not text.strip():
                return {"ok": True, "filter": None, "conditions": 0}
            try:
                value = json.loads(text)
            except json.JSONDecodeError as error:
                return _wrong(f"this is not JSON: {error.msg}", error.pos)
            except (ValueError, RecursionError):
                return _wrong("this is not JSON that a filter can have")
        try:
            parsed = parse_filter(value)
        except InvalidRequestError as error:
            return _wrong(error.message)
        return {"ok": True, "filter": value, "conditions": 0 if parsed is None else len(parsed.conditions)}


def _wrong(message: str, at: int | None = None) -> dict[str, Any]:
    return {"ok": False, "message": message, "at": at}
