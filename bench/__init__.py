"""Benchmarks socketio_pg against stock Flask-SocketIO and Node's socket.io: `python bench/run.py`."""
