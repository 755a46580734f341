"""For programs on asyncio: subscriptions that survive reconnects. Needs a server, no database.

In: the server's URL, and an optional token.
Out: each message of the log once and in order, the messages of NOTIFY, gaps, and positions to resume from.

Open `subscriber.py` first: the public class. `link.py` keeps the connection and the timers, `connection.py` is one
WebSocket. All that needs no I/O is in `socketio_pg.subscriber`, for threads too: the state of a channel, the choice of
the next request, the renewal of the token.
"""

from socketio_pg.aio.subscriber import AsyncSubscriber, AsyncSubscription

__all__ = ["AsyncSubscriber", "AsyncSubscription"]
