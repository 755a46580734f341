"""The rooms of subscriptions: all that get the same frames share one. Pure, no I/O."""

from socketio_pg.pubsub.filters import Filter


def room_of(channel: str, filter: Filter | None, strings: bool = False) -> str:
    """Return the room of a channel's, or pattern's, subscriptions with ``filter``, with numbers as ``strings`` or not.

    Channel names and patterns have no control characters.
    """
    room = channel if filter is None else f"{channel}\0{filter.text}"
    return of_strings(room) if strings else room


def of_strings(room: str) -> str:
    """Return the room of the subscriptions that get the same with numbers as strings."""
    return f"{room}\1"
