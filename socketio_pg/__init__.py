"""Realtime for the PostgreSQL that you already have. See README.md and docs/."""

from typing import TYPE_CHECKING, Any

from socketio_pg.errors import PayloadTooLargeError, SocketIOPGError
from socketio_pg.version import __version__

if TYPE_CHECKING:
    from socketio_pg.pubsub import PubSub

__all__ = ["PayloadTooLargeError", "PubSub", "SocketIOPGError", "__version__"]


def __getattr__(name: str) -> Any:
    # Not imported above: socketio_pg.client is to need neither Flask nor eventlet.
    if name == "PubSub":
        from socketio_pg.pubsub import PubSub

        return PubSub
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
