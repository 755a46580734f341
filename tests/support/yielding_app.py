"""The server, but others get their turn after every single send: what can happen during a broadcast, happens."""

from socketio_pg.server import app
from socketio_pg.websocket import SocketServer

server: SocketServer = app.extensions["socketio_pg"]
server.socketio.server.manager.slice_seconds = 0.0
server.socketio.server.manager.slice_sends = 1

__all__ = ["app"]
