"""An application that uses presence from Flask: its members, and the signals. Controlled by HTTP requests."""

from socketio_pg.core import green

green.patch()

from typing import Any  # noqa: E402

from flask import Flask, current_app, jsonify  # noqa: E402
from flask_socketio import join_room  # noqa: E402

from socketio_pg.presence.table import PresenceTable  # noqa: E402
from socketio_pg.signals import channel_occupied, channel_vacated, member_joined, member_left  # noqa: E402
from socketio_pg.websocket import SocketServer  # noqa: E402

# Tests do not wait until a process is found dead after 11 seconds.
PresenceTable.lease, PresenceTable.beat = 6.0, 0.5

app = Flask(__name__)
server = SocketServer(app)
#: What the signals of this process have told.
told: list[list[str]] = []


@channel_occupied.connect
def occupied(sender: Flask, channel: str) -> None:
    assert current_app.name == sender.name
    told.append(["occupied", channel])


@channel_vacated.connect
def vacated(sender: Flask, channel: str) -> None:
    told.append(["vacated", channel])


@member_joined.connect
def joined(sender: Flask, channel: str, key: str) -> None:
    told.append(["joined", channel, key])


@member_left.connect
def left(sender: Flask, channel: str, key: str) -> None:
    told.append(["left", channel, key])


@server.socketio.on("enter")
def enter(room: str) -> bool:
    join_room(room)
    return True


@app.get("/room/<room>")
def room(room: str) -> Any:
    return jsonify(server.connections(room=room).to_wire())


@app.get("/members/<channel>")
def members(channel: str) -> Any:
    return jsonify(members=server.members(channel), count=server.count_members(channel))


@app.get("/told")
def all_told() -> Any:
    return jsonify(told)
