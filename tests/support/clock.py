"""A server's wall clock that tests can move, for example to expire tokens immediately."""

import time
from datetime import datetime, tzinfo

import jwt.api_jwt
from flask import Flask, request

from tests.support.all_workers import AllWorkers
from tests.support.server import ServerProcess

_time = time.time


class _Datetime(datetime):
    """The class of PyJWT's times, which otherwise do not depend on :func:`time.time`."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "_Datetime":
        return cls.fromtimestamp(time.time(), tz)


def add_clock(app: Flask) -> None:
    """Add a route to the server that changes the time of its processes."""
    vars(jwt.api_jwt)["datetime"] = _Datetime

    def move(offset: float) -> None:
        time.time = lambda: _time() + offset

    workers = AllWorkers(app, "clock", move)

    @app.get("/clock")
    def clock() -> str:
        workers.call(float(request.args["offset"]))
        return "ok"


def set_clock(server: ServerProcess, offset: float = 0.0) -> None:
    """Set the clock of ``server`` to ``offset`` seconds after the real time."""
    assert server.get(f"/clock?offset={offset:g}")[0] == 200
