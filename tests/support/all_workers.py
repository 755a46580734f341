"""Asks all workers of a test application, whichever of them a request has reached."""

import json
from collections.abc import Callable
from typing import Any

from flask import Flask

from socketio_pg.workers.workers import Workers
from tests.support.patience import PATIENCE


class AllWorkers:
    """Calls ``function(argument)`` in each worker of ``app``, whose :class:`SocketServer` is not started yet.

    ``name`` differs from those of the application's other functions. Arguments and results are JSON values.
    """

    def __init__(self, app: Flask, name: str, function: Callable[[Any], Any]) -> None:
        self._function = function
        self._name = f"test {name}"
        workers: Workers | None = app.extensions["socketio_pg"].workers
        self._peers = None if workers is None else workers.peers
        if self._peers is not None:
            self._peers.answer(self._name, lambda argument: json.dumps(function(json.loads(argument))).encode())

    def call(self, argument: Any = None) -> list[Any]:
        """Return the results of all workers, that of this one first."""
        results = [self._function(argument)]
        if self._peers is not None:
            asked = set(self._peers.slots)
            answers = self._peers.ask(self._name, json.dumps(argument).encode(), PATIENCE)
            assert answers.keys() == asked, "a worker has ended"
            results += map(json.loads, answers.values())
        return results
