"""Talks to PostgreSQL: connections, LISTEN, publishing, and the schema ``socketio_pg`` with its SQL in ``sql/``.

In: channels to listen to, messages to publish, and the settings DATABASE_URL and LISTEN_DATABASE_URL.
Out: notifications and gaps (`listener`), commits (`publisher`), the installed schema (`schema`), and for development an
embedded PostgreSQL (`embedded`). Driver errors leave as the errors of `socketio_pg.core.errors`.

Open `listener.py` first, `publisher.py` for the way out, and `sql/2_functions.sql` for what runs in the database.
"""
