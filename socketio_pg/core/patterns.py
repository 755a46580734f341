"""Patterns of channel names: validation, containment, their form in SQL. Pure, no I/O.

A pattern is the name of a subscription like a channel. The two cannot be confused: no channel name has a ``*``.
"""

from socketio_pg.core.channels import RESERVED_PREFIX, match_pattern, validate_channel
from socketio_pg.core.errors import InvalidChannelError

#: The maximum number of ``*`` in a pattern that a client subscribes to.
MAX_STARS = 8


def is_pattern(name: str) -> bool:
    """Return whether the name of a subscription is a pattern."""
    return "*" in name


def named(name: str) -> dict[str, str]:
    """Return the field that names a subscription on the wire: ``pattern`` or ``channel``."""
    return {"pattern" if is_pattern(name) else "channel": name}


def validate_pattern(pattern: object) -> str:
    """Return ``pattern`` if a client may subscribe to it, unchanged.

    It is a string that would be a valid channel name without its ``*``, of which it has 1 to :data:`MAX_STARS`, and
    no two in a row. Raises :class:`InvalidChannelError` for anything else.
    """
    if not isinstance(pattern, str):
        raise InvalidChannelError("pattern must be a string")
    stars = pattern.count("*")
    if not stars:
        raise InvalidChannelError("pattern must have a '*'; subscribe to a single name with channel")
    if stars > MAX_STARS:
        raise InvalidChannelError(f"pattern may have at most {MAX_STARS} '*', this one has {stars}")
    if "**" in pattern:
        raise InvalidChannelError("pattern must not have two '*' in a row: one matches any characters, also ':'")
    try:
        # Another character of one byte, which may be anywhere in a name.
        validate_channel(pattern.replace("*", "-"))
    except InvalidChannelError as error:
        raise InvalidChannelError(error.message.replace("channel must", "pattern must")) from None
    return pattern


def matches(pattern: str, channel: str) -> bool:
    """Return whether a subscription to ``pattern`` gets the messages of ``channel``: never of the server's own."""
    return match_pattern(pattern, channel) and not channel.startswith(RESERVED_PREFIX)


def covers(outer: str, inner: str) -> bool:
    """Return whether ``outer`` matches every name that ``inner`` matches. Each may be a pattern or a name.

    The ``*`` of ``inner`` is taken for a character that ``outer`` does not have, so only a ``*`` of ``outer`` can match
    it. That one also matches whatever stands for this character. The converse holds because names may have such a
    character: if ``outer`` does not match it there, it does not match that name.
    """
    return match_pattern(outer, inner)


def overlap(one: str, other: str) -> bool:
    """Return whether there may be a name that both match. Each may be a pattern or a name.

    True for any two patterns whose ends agree: a name that both match has the middle parts of one, and then those of
    the other. There are no names of over 63 bytes, so it is also True for pairs of long patterns that none matches.
    """
    if not is_pattern(one):
        return match_pattern(other, one)
    if not is_pattern(other):
        return match_pattern(one, other)
    (begin, *_, end), (other_begin, *_, other_end) = one.split("*"), other.split("*")
    begins = begin.startswith(other_begin) or other_begin.startswith(begin)
    return begins and (end.endswith(other_end) or other_end.endswith(end))


def prefix_of(pattern: str) -> str:
    """Return the characters before the first ``*``."""
    return pattern.partition("*")[0]


def to_like(name: str) -> str:
    """Return a pattern, or a name, as a pattern of SQL's LIKE."""
    escaped = name.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%")
