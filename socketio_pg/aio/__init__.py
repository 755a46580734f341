"""For programs on asyncio: subscriptions that survive reconnects, and publishing in the program's own transaction.

In: the server's URL and an optional token; a connection to PostgreSQL.
Out: each message of the log once and in order, the messages of NOTIFY, gaps, and positions to resume from.

Open `subscriber.py` first: the public class. `link.py` keeps the connection and the timers, `connection.py` is one
WebSocket. What needs no I/O is in `socketio_pg.subscriber`, for threads too: the state of a channel, the choice of the
next request, the renewal of the token. `publishing.py` needs no server.
"""

from typing import TYPE_CHECKING, Any

from socketio_pg.aio.subscriber import AsyncPresence, AsyncSubscriber, AsyncSubscription

if TYPE_CHECKING:
    from socketio_pg.aio.publishing import publish

__all__ = ["AsyncPresence", "AsyncSubscriber", "AsyncSubscription", "publish"]


def __getattr__(name: str) -> Any:
    # Imported lazily: only publishing needs SQLAlchemy.
    if name == "publish":
        from socketio_pg.aio.publishing import publish

        return publish
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
