"""gunicorn finds this file by itself in the working folder; the settings are in the package."""

from socketio_pg.gunicorn_config import *  # noqa: F403
