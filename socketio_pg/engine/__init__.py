"""Engine.IO on WebSockets and long-polling, without a green thread for each client.

In: WSGI requests of gunicorn or of the development server, and bytes on connections taken over from them.
Out: messages for `handle_message`, events when connections open and close, and frames on the wire.

Open `server.py` first: requests, handshakes, pings. `socket.py` is one client, `transport.py` one WebSocket. `front.py`
serves the connections of gunicorn's worker, `handover.py` takes one over from the WSGI server. The other files are pure
functions.
"""
