"""The server, but yielding after every send and every few filters, to provoke races during broadcasts."""

from socketio_pg.pubsub.filter_index import FilterIndex
from socketio_pg.server import app
from socketio_pg.websocket import SocketServer

server: SocketServer = app.extensions["socketio_pg"]
server.socketio.server.manager.sending.slice_seconds = 0.0
server.socketio.server.manager.sending.slice_sends = 1
server.pubsub.matching.slice_seconds = -1.0
FilterIndex.slice_filters = 1

__all__ = ["app"]
