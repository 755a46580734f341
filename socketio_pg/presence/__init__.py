"""Presence: the members of channels, over all processes (docs/presence.md).

In: joins, updates, leaves and lost connections of this process's clients, from `gateway`; those of other processes,
over `cluster/bus`. Out: the members of a channel, what has changed since the clients were last told, and the rows in
the database. Begin with `presence`.
"""
