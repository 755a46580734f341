"""Doctor in the inspector: runs the checks of `socketio-pg doctor` in the server, on demand."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from socketio_pg.core import green
from socketio_pg.doctor.findings import Finding
from socketio_pg.inspector.routes import Routes

logger = logging.getLogger("socketio_pg.inspector")


class DoctorApi:
    """Runs the checks, one run at a time: who asks meanwhile waits for it. ``examine()`` makes them."""

    #: Seconds for a run.
    seconds = 20.0

    def __init__(self, examine: Callable[[], Iterator[Finding]]) -> None:
        self._examine = examine
        self._last: dict[str, Any] | None = None
        #: The run in progress.
        self._done: green.Event | None = None

    def add_to(self, routes: Routes) -> None:
        """Add the requests."""
        routes.get("doctor", self.last)
        routes.post("doctor", self.run)

    def last(self) -> dict[str, Any]:
        """``GET doctor``: the answer of the last run."""
        return (self._last or {"findings": None}) | {"running": self._done is not None}

    def run(self, body: dict[str, Any]) -> dict[str, Any]:
        """``POST doctor``."""
        if self._done is None:
            self._done = green.Event()
            green.run_soon(self._run, self._done)
        answer: dict[str, Any] = self._done.wait()
        return answer

    def _run(self, done: green.Event) -> None:
        began = time.monotonic()
        answer: dict[str, Any] = {"findings": [], "complete": False, "at": round(time.time(), 3)}
        try:
            with green.timeout(self.seconds):
                for finding in self._examine():
                    one = {"check": finding.check, "level": finding.level, "found": finding.found}
                    answer["findings"].append(one | {"remedy": finding.remedy})
                    # Checks of the settings and of this machine do not wait by themselves.
                    green.sleep()
            answer["complete"] = True
        except green.TimedOut:
            answer["findings"].append(
                {
                    "check": "doctor",
                    "level": "warning",
                    "found": f"the checks took longer than {self.seconds:g} s: those that are missing were not made",
                    "remedy": "run 'socketio-pg doctor' on the server's machine",
                }
            )
        except Exception:  # a bug in a check: who waits must get an answer
            logger.exception("the doctor failed")
        finally:
            answer["seconds"] = round(time.monotonic() - began, 3)
            self._last, self._done = answer, None
            done.send(answer)
