"""A server that reconnects quickly to its database, so that a test of an outage does not wait long for its end."""

from socketio_pg.server import app as app

from socketio_pg.gateway.health import Reachability  # isort: skip
from socketio_pg.postgres.listener import Listener  # isort: skip

Listener.backoff = (0.1, 0.2)
Reachability.up_after = 0.5
# A reconnect on a busy machine is no outage.
Reachability.down_after = 8.0
