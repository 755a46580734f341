"""A stock python-socketio server in threads: `python -m tests.support.stock_app PORT DATABASE CLUSTER_KEY`."""

import sys
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import socketio

from socketio_pg import PostgresManager

io = socketio.Server(async_mode="threading", client_manager=PostgresManager(sys.argv[2], cluster_key=sys.argv[3]))


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@io.event
def connect(sid: str, environ: dict[str, Any]) -> None:
    io.emit("server_hello", {"sid": sid}, to=sid)


@io.event
def join(sid: str, room: str) -> None:
    io.enter_room(sid, room)


@io.event
def tell(sid: str, room: str, news: Any) -> None:
    io.emit("news", news, room=room)


@io.event
def ask(sid: str, whom: str) -> Any:
    return io.call("question", "why?", to=whom, timeout=60)


if __name__ == "__main__":
    with make_server("127.0.0.1", int(sys.argv[1]), socketio.WSGIApp(io), Server, Quiet) as httpd:
        print("ready", flush=True)
        httpd.serve_forever()
