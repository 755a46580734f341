"""The server, but yielding to other green threads after every send, to provoke races during broadcasts."""

from socketio_pg.server import app
from socketio_pg.websocket import SocketServer

server: SocketServer = app.extensions["socketio_pg"]
server.socketio.server.manager.slice_seconds = 0.0
server.socketio.server.manager.slice_sends = 1

__all__ = ["app"]
