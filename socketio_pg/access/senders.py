"""The sender of a message: the claims of the client that subscribers read, as the field `from`. No I/O."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from socketio_pg.access.tokens import Claims
from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.core.meta import MAX_SENDER_BYTES


class Senders:
    """Chooses the claims: those with the names ``chosen``, the setting FROM_CLAIMS."""

    def __init__(self, chosen: Sequence[str]) -> None:
        self._chosen = chosen

    def of(self, claims: Claims | None) -> Mapping[str, Any]:
        """Return `from` of a client; empty for an anonymous one, and for one without these claims."""
        if claims is None:
            return {}
        found = {name: claims.claims.get(name) for name in self._chosen}
        return {name: value for name, value in found.items() if value is not None}

    def json_of(self, claims: Claims | None) -> str | None:
        """Return `from` of a client as JSON text; None if it would be empty.

        Raises :class:`InvalidRequestError` if it is larger than `MAX_SENDER_BYTES`, or PostgreSQL cannot store it: a
        message without it would look like that of an anonymous client.
        """
        found = self.of(claims)
        if not found:
            return None
        text = json.dumps(found, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        names = ", ".join(found)
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            size = 0
        if not size or "\\u0000" in text:
            raise InvalidRequestError(f"the token's claims {names} have a character that PostgreSQL cannot store")
        if size > MAX_SENDER_BYTES:
            raise InvalidRequestError(
                f"the token's claims {names} have {size} bytes as JSON: a message has at most {MAX_SENDER_BYTES}"
            )
        return text
