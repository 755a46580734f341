"""Clients in the inspector: connections of all processes with their figures, and disconnecting one."""

from typing import Any

from socketio_pg.control.control import Control
from socketio_pg.control.local_clients import COLUMNS
from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.core.listing import cut
from socketio_pg.inspector import requests
from socketio_pg.inspector.routes import Routes


class ClientsApi:
    """The requests about clients."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def add_to(self, routes: Routes) -> None:
        """Add the requests."""
        routes.get("clients", self.clients)
        routes.post("clients/disconnect", self.disconnect, needs="act")

    def clients(self) -> dict[str, Any]:
        """``GET clients``."""
        listing = requests.listing(COLUMNS, "-since")
        found = self._control.clients(
            listing,
            sub=requests.text("sub"),
            sid=requests.text("sid"),
            channel=requests.text("channel"),
            measure=requests.seconds("measure"),
        )
        shown = {"clients": cut(found.rows, listing), "total": found.total, "complete": found.complete}
        return shown | found.found | found.answered()

    def disconnect(self, body: dict[str, Any]) -> dict[str, Any]:
        """``POST clients/disconnect``."""
        match body:
            case {"sid": str(sid)} if "sub" not in body:
                return self._control.disconnect_connection(sid).to_wire()
            case {"sub": str(sub)} if "sid" not in body:
                return self._control.disconnect_user(sub).to_wire()
        raise InvalidRequestError("name either sid, the connection, or sub, the user")
