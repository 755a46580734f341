"""The durable log: numbers published messages without holes, delivers them in order, and replays older ones.

In: rows of the outbox, notifications of the relay, and requests to replay from a position.
Out: batches of messages in the order of their positions, pages of older messages, and reasons of gaps.

Open `relay.py` for the way from the outbox to the log, `follower.py` for the way to this node's subscribers, `log.py`
for the interface of other folders. `positions.py`, `low_water.py` and `recent.py` do no I/O.
"""
