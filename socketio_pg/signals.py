"""Flask signals about presence: docs/presence.md. Their sender is the Flask application.

For each event the receivers of one process are called, of all nodes and workers: in a green thread, within the
application's context. They may wait; those of the next events of the same moment wait for them.
"""

from blinker import Namespace
from flask import Flask

_namespace = Namespace()

#: A channel has got its first member: ``receiver(app, channel)``.
channel_occupied = _namespace.signal("channel_occupied")
#: A channel has lost its last member: ``receiver(app, channel)``.
channel_vacated = _namespace.signal("channel_vacated")
#: A member has joined with its first connection: ``receiver(app, channel, key)``.
member_joined = _namespace.signal("member_joined")
#: A member has left with its last connection: ``receiver(app, channel, key)``.
member_left = _namespace.signal("member_left")

_SIGNALS = {
    "occupied": channel_occupied,
    "vacated": channel_vacated,
    "joined": member_joined,
    "left": member_left,
}


def has_receivers_of_members() -> bool:
    """Return whether anything receives the signals about members, which cost the database a query with each write."""
    return bool(member_joined.receivers or member_left.receivers)


def send(app: Flask, event: str, channel: str, key: str | None) -> None:
    """Send the signal of an event of presence."""
    signal = _SIGNALS[event]
    if signal.receivers:
        with app.app_context():
            if key is None:
                signal.send(app, channel=channel)
            else:
                signal.send(app, channel=channel, key=key)
