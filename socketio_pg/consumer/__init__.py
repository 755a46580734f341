"""Durable consumers: do the work on each message exactly once, in the transaction that moves the consumer's position.

In: connections to PostgreSQL (psycopg2, psycopg 3 or SQLAlchemy), a name, channels, and a function that does the work.
Out: calls of that function with a connection whose transaction also has the position.

Open `consumer.py` first: it reads the log in PostgreSQL, with the functions in `postgres/sql/`. `server.py` reads it
through a server, and keeps positions in the application's own database. `connections.py` is a connection of any driver.
"""

from socketio_pg.consumer.consumer import Consumer, ConsumerGap, Message, MissedMessagesError

__all__ = ["Consumer", "ConsumerGap", "Message", "MissedMessagesError"]
