"""Control: lists connections, disconnects users, ends their subscriptions, and sends to them, on all processes.

In: calls of the application, requests with ADMIN_TOKEN (`web/control`), functions of SQL (sql/3_control.sql).
Out: what `local.py` does to the clients of one process, and the answers of all processes together.

Open `control.py` first.
"""
