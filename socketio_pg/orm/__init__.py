"""orm: see docs/architecture.md."""

from socketio_pg.orm.hooks import publishes

__all__ = ["publishes"]
