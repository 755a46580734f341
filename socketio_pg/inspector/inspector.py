"""Makes the parts of the inspector. `parts` makes the inspector, and `websocket` starts and stops it."""

from collections.abc import Callable

from flask import Flask

from socketio_pg.core.config import Settings
from socketio_pg.inspector.access import InspectorAccess
from socketio_pg.inspector.everywhere import Everywhere
from socketio_pg.inspector.passes import Passes
from socketio_pg.inspector.routes import Part, create_inspector_blueprint
from socketio_pg.inspector.session import SessionApi


class Inspector:
    """The inspector of one process. ``start_server()`` connects the server; ``max_bytes`` limits a request's body."""

    def __init__(
        self,
        settings: Settings,
        app: Flask,
        access: InspectorAccess,
        passes: Passes,
        everywhere: Everywhere,
        start_server: Callable[[], None],
        max_bytes: int,
    ) -> None:
        parts: list[Part] = [
            SessionApi(access, passes, everywhere),
        ]
        app.register_blueprint(create_inspector_blueprint(access, parts, start_server, max_bytes))

    def start(self) -> None:
        """Start the samples. Call it after the fork."""

    def stop(self) -> None:
        """Stop all green threads."""
