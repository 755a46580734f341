"""Checks for common problems in settings, machine, PostgreSQL and log, and suggests fixes. Changes nothing.

In: the settings, the environment, and a connection to the database.
Out: findings (ok, warning or error, with a remedy), and the sections of ``socketio-pg status``.

Open `doctor.py` first: the list of checks. They are in `checks_names.py`, `checks_settings.py`, `checks_database.py`
and `checks_log.py`; `status.py` reads the state of database and log, `findings.py` has the result types.
"""
