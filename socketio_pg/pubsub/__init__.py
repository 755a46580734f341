"""Subscribe and publish from Python: the core of the server without the sockets.

In: notifications from `postgres/listener`, messages of the log, and calls of programs and of `gateway`.
Out: messages and gaps for receivers, publications for `postgres/publisher`.

Open `pubsub.py` first: the class `PubSub`. `hub.py` knows which subscriber has which channel and filter, `filters.py`
evaluates conditions on payloads, `dispatch.py` delivers, `publishing.py` publishes, `holds.py` holds live messages back
for replays, `local.py` has the subscriptions of Python programs.
"""
