"""Authenticates clients and decides which channels they may subscribe and publish to.

In: handshakes and tokens (`authentication`, `tokens`, `keys`), the settings AUTH, AUTHORIZATION and PUBLISH, the
row-level-security policies on ``socketio_pg.messages``, and notifications that permissions have changed.
Out: a client's `Claims`, errors for refused clients and actions, and calls that revoke subscriptions (`rechecks`) or
end expired sessions (`sessions`).

Open `access.py` first: it combines the parts. `permissions.py` has the rules, `policies.py` the queries.
"""
