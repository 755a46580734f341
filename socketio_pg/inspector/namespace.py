"""The Socket.IO namespace /inspector: figures each second, and live messages, for the inspector's readers."""

#: Its name.
NAMESPACE = "/inspector"
