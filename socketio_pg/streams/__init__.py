"""Server-Sent Events: streams as subscribers, beside the clients of Socket.IO.

In: requests that `web/stream` has checked, messages and gaps from `pubsub`. Out: blocks of text in the send buffers of
`engine/stream`, encoded once for all streams that get the same.

Open `streams.py` first. `preparing.py` does what waits before a stream begins, `groups.py` broadcasts, `replays.py`
sends replays, and `comments.py` keeps streams alive.
"""
