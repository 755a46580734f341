"""subscriber: see docs/architecture.md."""

from socketio_pg.subscriber.subscriber import Subscriber

__all__ = ["Subscriber"]
