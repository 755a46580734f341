"""The Python client for programs with threads: subscriptions that survive reconnects. Needs a server, no database.

In: the server's URL, an optional token, and handlers for messages, gaps and errors.
Out: each message of the log once and in order, the messages of NOTIFY, gaps, and positions to resume from.

Open `subscriber.py` first: the public class. `link.py` keeps the connection and the two threads, `channel.py` keeps one
channel's subscription at the server, `subscription.py` decides without I/O which request comes next.
"""

from socketio_pg.subscriber.subscriber import (
    Direct,
    EphemeralMessage,
    Gap,
    Health,
    Message,
    Position,
    Presence,
    PresenceMember,
    Subscriber,
    Subscription,
)

__all__ = [
    "Direct",
    "EphemeralMessage",
    "Gap",
    "Health",
    "Message",
    "Position",
    "Presence",
    "PresenceMember",
    "Subscriber",
    "Subscription",
]
