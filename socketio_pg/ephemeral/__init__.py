"""Ephemeral messages: from clients to clients without the database, for cursors and typing. docs/ephemeral.md.

In: ephemeral publications of clients, from `gateway`, and those that other processes have gathered, from the bus.
Out: events in the rooms of `protocol/fanout`, and batches on the bus.

A message is accepted in `ephemeral`, waits for its round in `rounds`, and is sent by `sending`. Begin with `ephemeral`.
"""
