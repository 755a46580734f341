"""subscriber: see docs/architecture.md."""

from socketio_pg.subscriber.subscriber import Gap, Message, Position, Subscriber, Subscription

__all__ = ["Gap", "Message", "Position", "Subscriber", "Subscription"]
