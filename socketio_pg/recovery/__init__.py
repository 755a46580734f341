"""Connection state recovery: the sessions of Socket.IO clients that ask for it, kept for their return.

In: what happens to clients and their subscriptions, from `gateway`. Out: sessions on this node and in the database,
replays over all of a client's channels. `gateway/restoring` gives the sessions back. Begin with `keeping`.
"""
