"""A server's wall clock that tests set forward and back, so that what ends in ten minutes ends now."""

import time

from flask import Flask, request

from tests.support.server import ServerProcess

_time = time.time


def add_clock(app: Flask) -> None:
    """The server's side: its process has another time from then on."""

    @app.get("/clock")
    def clock() -> str:
        offset = float(request.args["offset"])
        time.time = lambda: _time() + offset
        return "ok"


def set_clock(server: ServerProcess, offset: float = 0.0) -> None:
    """The time of ``server`` is ``offset`` seconds after ours."""
    assert server.get(f"/clock?offset={offset:g}")[0] == 200
