"""The inspector: a page for developers and operators, at /inspector/, and its JSON API, for them only.

Input: requests below /inspector/, and the events of clients of the Socket.IO namespace /inspector. Output: figures of
all processes, lists of channels and clients, live messages. Begin with `routes`; `access` has the sign-in.
"""
