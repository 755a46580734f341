"""gunicorn's configuration for the application `moving_app`: ``-c python:tests.support.moving_server``."""

from typing import Any

from socketio_pg import gunicorn_config
from socketio_pg.gunicorn_config import *  # noqa: F403

OPTIONS = ("-c", f"python:{__name__}")
APP = "tests.support.moving_app:app"


def post_worker_init(worker: Any) -> None:  # type: ignore[no-redef]
    gunicorn_config.post_worker_init(worker)
    worker.wsgi.extensions["move_connections"](worker)
