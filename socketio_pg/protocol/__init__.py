"""Socket.IO: packets, CONNECT, events, acknowledgements, and the fan-out to rooms. Knows no PostgreSQL.

In: messages from `engine`, and emits to rooms.
Out: calls of event handlers and of a `Lifecycle`, answers, and one frame for all members of a room.

Open `server.py` first. `packets.py` parses, `answers.py` runs handlers, `lifecycle.py` has what the server asks its
owner, `fanout.py` is the client manager, `sending.py` sends to the members of its rooms, and `extension.py` is
Flask-SocketIO on top. docs/architecture.md lists the overridden methods of the libraries.
"""
