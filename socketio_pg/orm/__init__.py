"""``@publishes`` for SQLAlchemy models: row changes become messages. Needs neither Flask nor green threads.

In: mapped classes with the decorator, and the flushes of their sessions.
Out: one message per inserted, updated or deleted row, published in the session's own transaction.

Open `hooks.py` first: it collects what a flush writes and publishes it. `reading.py` reads the rows back as JSON, and
`row_images.py` builds the messages. Independent of these, `snapshots.py` reads rows with the token of their snapshot.
"""

from socketio_pg.orm.hooks import publishes, publishing
from socketio_pg.orm.snapshots import snapshot_of

__all__ = ["publishes", "publishing", "snapshot_of"]
