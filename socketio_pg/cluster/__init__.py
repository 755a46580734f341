"""Connects several server nodes, so that emits, rooms, disconnects and callbacks reach the clients of all of them.

In: the settings MESSAGE_QUEUE and LISTEN, Flask-SocketIO's emits on this node, and messages from other nodes over
PostgreSQL, Redis, Valkey or Kafka.
Out: a client manager for the Socket.IO server; with LISTEN=leader also notifications that the leader forwards to nodes
without a LISTEN connection (`forwarder.py` on the leader, `remote_listener.py` on the others).

Open `select.py` first: it chooses the parts. `queue_manager.py` has what all client managers share.
"""
