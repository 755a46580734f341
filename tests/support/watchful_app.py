"""The server, but it looks at the outbox more often, so that tests of stuck messages need not wait as long."""

from socketio_pg.log.backlog import Backlog
from socketio_pg.server import app

Backlog.interval = 0.5
Backlog.full_scan_interval = 1.0

__all__ = ["app"]
