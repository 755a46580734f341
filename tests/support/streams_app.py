"""The server with short times for streams: COMMENT_SECONDS between comments, TICKET_SECONDS for a ticket."""

from socketio_pg.core import green

green.patch()

import os  # noqa: E402

from socketio_pg.access.tickets import Tickets  # noqa: E402
from socketio_pg.app import create_app  # noqa: E402
from socketio_pg.streams.comments import Comments  # noqa: E402

Comments.comment_seconds = float(os.environ.get("COMMENT_SECONDS", Comments.comment_seconds))
Comments.tick = Comments.comment_seconds / 4
Tickets.seconds = int(os.environ.get("TICKET_SECONDS", Tickets.seconds))
Tickets.clocks = 0.0
app = create_app()
