"""The server with short times for streams: COMMENT_SECONDS between comments, TICKET_SECONDS for a ticket."""

from socketio_pg.core import green

green.patch()

import os  # noqa: E402

from socketio_pg.access.tickets import Tickets  # noqa: E402
from socketio_pg.app import create_app  # noqa: E402
from socketio_pg.streams.streams import Streams  # noqa: E402

Streams.comment_seconds = float(os.environ.get("COMMENT_SECONDS", Streams.comment_seconds))
Streams.tick = Streams.comment_seconds / 4
Tickets.seconds = int(os.environ.get("TICKET_SECONDS", Tickets.seconds))
Tickets.clocks = 0.0
app = create_app()
