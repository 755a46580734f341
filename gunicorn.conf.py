"""gunicorn loads this file from the working folder automatically; the settings are in the package."""

from socketio_pg.gunicorn_config import *  # noqa: F403
