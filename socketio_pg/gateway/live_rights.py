"""As whom a client reads live tables, and whether it may: its role and claims, the table, and the table's channel."""

import json

from socketio_pg.access.permissions import Permissions
from socketio_pg.access.sessions import Sessions
from socketio_pg.access.tokens import Claims
from socketio_pg.core.channels import match_pattern
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import ForbiddenError
from socketio_pg.pubsub.hub import UnknownSubscriberError
from socketio_pg.tables.definition import Definition
from socketio_pg.tables.reading import Identity

#: Claims that differ between the tokens of one client, and that no policy needs: expired tokens are refused.
_TIMES = ("exp", "iat", "nbf")


class LiveRights:
    """The rights of the clients of one server. What a role may read, PostgreSQL decides."""

    def __init__(self, settings: Settings, permissions: Permissions, sessions: Sessions) -> None:
        self._settings = settings
        self._permissions = permissions
        self._sessions = sessions

    def require_table(self, name: str) -> None:
        """Return if a table may be a live table. Raises :class:`ForbiddenError`."""
        if not any(match_pattern(pattern, name) for pattern in self._settings.live_tables):
            raise ForbiddenError("this is no live table: LIVE_TABLES does not name it")

    def require_trust(self, table: Definition) -> None:
        """Return if a table's owner is trusted, or the operator has named the table. Raises :class:`ForbiddenError`."""
        if not table.trusted and table.name not in self._settings.live_tables:
            raise ForbiddenError("the owner of this table is not trusted: LIVE_TABLES must name the table itself")

    def claims(self, sid: str) -> Claims | None:
        """Return the claims of a client. Raises :class:`UnknownSubscriberError` when it has left."""
        session = self._sessions.get(sid)
        if session is None:
            raise UnknownSubscriberError(sid)
        return session.claims

    def identity(self, sid: str) -> Identity:
        """Return the role and the claims with which a client reads. Raises :class:`ForbiddenError`."""
        claims = self.claims(sid)
        if self._settings.authorization == "rls":
            role = self._permissions.role(claims)
        elif self._settings.live_table_role is None:
            raise ForbiddenError("clients have no role to read tables: LIVE_TABLE_ROLE is not set")
        else:
            role = self._settings.live_table_role
        kept = {} if claims is None else {name: value for name, value in claims.claims.items() if name not in _TIMES}
        # As in PostgREST, the claims always contain `role`.
        return Identity(role, json.dumps({**kept, "role": role}, separators=(",", ":")))

    def require(self, sid: str, table: Definition) -> None:
        """Return if a client may read a table's changes: without a role of its own, it needs the channel's permission.

        May wait; raises as :meth:`Permissions.require`.
        """
        self.require_trust(table)
        if self._settings.authorization != "rls":
            self._permissions.require(self.claims(sid), "subscribe", table.channel)
