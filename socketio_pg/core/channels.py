"""Channel names: validation, patterns, quoting for SQL, and the server's reserved names. No I/O."""

import re

from socketio_pg.core.errors import InvalidChannelError

#: PostgreSQL silently truncates identifiers to NAMEDATALEN - 1 bytes, so longer names are rejected.
MAX_CHANNEL_BYTES = 63
#: Names with this prefix are reserved for the server.
RESERVED_PREFIX = "socketio_pg"
#: The relay notifies the nodes of new messages in the log here.
LOG_CHANNEL = "socketio_pg"
#: Publishers notify the relay of new messages in the outbox here.
BELL_CHANNEL = "socketio_pg_bell"
#: `socketio_pg.recheck()` announces changed permissions here, in the log: of the channel in the payload, or of all.
PERMISSIONS_CHANNEL = "socketio_pg_permissions"
#: The database announces changes of the rules for channels here, in the log.
RULES_CHANNEL = "socketio_pg_rules"
#: `socketio_pg.disconnect_user()` and similar functions announce here, in the log, what servers must do: `control/`.
CONTROL_CHANNEL = "socketio_pg_control"
#: Nodes and other programs exchange messages of Flask-SocketIO's own API here, with MESSAGE_QUEUE=postgres.
QUEUE_CHANNEL = "socketio_pg_queue"
#: Nodes tell each other here which of them takes a client's session over: docs/recovery.md.
SESSIONS_CHANNEL = "socketio_pg_sessions"
#: Processes of different nodes send each other messages here, unless MESSAGE_QUEUE names a broker: `cluster/bus`.
NODES_CHANNEL = "socketio_pg_nodes"

#: The end of the ids of Socket.IO clients. Each has a room of its own, as channels and patterns have, and other clients
#: may know its id: with this end it is neither a channel's name nor a pattern.
CLIENT_ID_END = "**"

#: All characters of Unicode's category Cc.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def validate_channel(name: object) -> str:
    """Return ``name`` if it is a valid channel name, unchanged.

    A name is a string of 1 to 63 bytes of UTF-8 without control characters, without leading or
    trailing white space, without ``*``, and does not start with ``socketio_pg``. It is case-sensitive.

    Raises :class:`InvalidChannelError` for anything else; names are never changed to make them valid.
    Source: the PostgreSQL manual, "Identifiers and Key Words" (NAMEDATALEN) and ``NOTIFY``.
    """
    if not isinstance(name, str):
        raise InvalidChannelError(f"channel must be a string, not {_json_type(name)}")
    if not name:
        raise InvalidChannelError("channel must not be empty")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidChannelError("channel must be valid Unicode, without lone surrogates") from None
    if size > MAX_CHANNEL_BYTES:
        raise InvalidChannelError(f"channel must have at most {MAX_CHANNEL_BYTES} bytes of UTF-8, this one has {size}")
    if _CONTROL.search(name):
        raise InvalidChannelError("channel must not contain control characters")
    if name != name.strip():
        raise InvalidChannelError("channel must not start or end with a space", channel=name)
    if "*" in name:
        raise InvalidChannelError("channel must not contain '*'", channel=name)
    if name.startswith(RESERVED_PREFIX):
        raise InvalidChannelError(f"channels that start with '{RESERVED_PREFIX}' are reserved", channel=name)
    return name


def has_control_characters(text: str) -> bool:
    """Return whether ``text`` contains control characters (Unicode's category Cc), such as U+0000."""
    return _CONTROL.search(text) is not None


def match_pattern(pattern: str, channel: str) -> bool:
    """Return whether ``channel`` matches ``pattern``, in which ``*`` stands for any characters, including none."""
    # Not a regular expression: patterns come from tokens, and one with many stars would backtrack exponentially.
    first, *parts = pattern.split("*")
    if not parts:
        return channel == pattern
    *middle, last = parts
    if not channel.startswith(first) or not channel.endswith(last):
        return False
    position, end = len(first), len(channel) - len(last)
    for part in middle:
        found = channel.find(part, position, end)
        if found < 0:
            return False
        position = found + len(part)
    return position <= end


def quote_identifier(name: str) -> str:
    """Return ``name`` as a quoted SQL identifier, so that LISTEN does not fold its case."""
    return '"' + name.replace('"', '""') + '"'


def quote_literal(text: str) -> str:
    """Return ``text`` as an SQL literal, whatever ``standard_conforming_strings`` is."""
    return "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    return "binary data"
