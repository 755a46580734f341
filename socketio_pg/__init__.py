"""Realtime for the PostgreSQL that you already have. See README.md and docs/."""

from typing import TYPE_CHECKING, Any

from socketio_pg.core.errors import PayloadTooLargeError, SocketIOPGError, UnauthorizedError
from socketio_pg.version import __version__

if TYPE_CHECKING:
    from socketio_pg.access.tokens import Claims
    from socketio_pg.cluster.postgres_manager import PostgresManager
    from socketio_pg.cluster.redis_manager import RedisManager
    from socketio_pg.core.green import patch as monkey_patch
    from socketio_pg.orm.hooks import publishes
    from socketio_pg.pubsub.pubsub import PubSub

__all__ = [
    "Claims",
    "PayloadTooLargeError",
    "PostgresManager",
    "PubSub",
    "RedisManager",
    "SocketIOPGError",
    "UnauthorizedError",
    "__version__",
    "monkey_patch",
    "publishes",
]


def __getattr__(name: str) -> Any:
    # Imported lazily, so that socketio_pg.client and socketio_pg.orm need neither Flask nor green threads.
    if name == "PubSub":
        from socketio_pg.pubsub.pubsub import PubSub

        return PubSub
    if name == "PostgresManager":
        from socketio_pg.cluster.postgres_manager import PostgresManager

        return PostgresManager
    if name == "RedisManager":
        from socketio_pg.cluster.redis_manager import RedisManager

        return RedisManager
    if name == "monkey_patch":
        from socketio_pg.core.green import patch

        return patch
    if name == "Claims":
        from socketio_pg.access.tokens import Claims

        return Claims
    if name == "publishes":
        from socketio_pg.orm.hooks import publishes

        return publishes
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
