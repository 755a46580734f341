"""Places in the log as clients write them: ``"EPOCH:POSITION"``, and what else ``since`` may be. Pure, no I/O."""

import re
from datetime import datetime
from typing import TypeAlias

from socketio_pg.core.messages import Position

#: What ``since`` takes in Python: a position, ``"EPOCH:POSITION"``, a time with its zone as ISO 8601 or as a
#: :class:`datetime.datetime`, or a token of the SQL function ``socketio_pg.snapshot()``.
Since: TypeAlias = Position | str | datetime

#: The greatest position: positions are bigint.
MAX_POSITION = 2**63 - 1

#: The beginning of a token of ``socketio_pg.snapshot()``.
SNAPSHOT_PREFIX = "snapshot:"

# Neither the beginning of a snapshot token, nor a time without its zone.
_CURSOR = re.compile(r"(?!snapshot:|[0-9]{4}-[0-9]{2}-[0-9]{2})([^:\s]+):([0-9]{1,19})")


def format_cursor(epoch: str, position: int) -> str:
    """Return a position as one string: ``"EPOCH:POSITION"``."""
    return f"{epoch}:{position}"


def parse_cursor(text: str) -> Position | None:
    """Parse ``"EPOCH:POSITION"``; return None for any other text. The epoch may be one that no log has."""
    found = _CURSOR.fullmatch(text)
    if found is None or int(found[2]) > MAX_POSITION:
        return None
    return Position(epoch=found[1], position=int(found[2]))
