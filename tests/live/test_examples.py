"""The applications in examples/ under uvicorn, with a real server and a real database."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest

from tests.support.log import Log, wait_installed
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.server import ROOT, clean_environment, free_port, listens

EXAMPLES = ("fastapi_app", pytest.param("django_app", marks=pytest.mark.nightly))


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "examples", AUTO_INIT="1")
    wait_installed(made)
    yield made
    made.server.close()


@pytest.fixture(params=EXAMPLES)
def application(request: pytest.FixtureRequest, log: Log) -> Iterator[str]:
    """The address of an example."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--port", str(port), "--app-dir", "examples", f"{request.param}:app"]
    if request.param == "django_app":
        command[3:3] = ["--lifespan", "off"]
    environment = clean_environment(DATABASE_URL=log.url, SOCKETIO_PG_URL=log.server.url, PYTHONPATH=str(ROOT))
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        until(lambda: listens(port) or process.poll() is not None, "the example listens")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        # uvicorn raises the signal again.
        assert process.wait(PATIENCE) in (0, -15)


def test_orders_are_published_and_streamed(application: str, log: Log) -> None:
    customer = 5

    def order() -> int:
        with urllib.request.urlopen(f"{application}/orders?customer={customer}", b"", PATIENCE) as answer:
            number: int = json.load(answer)["id"]
            return number

    before = order()
    log.settle()
    with urllib.request.urlopen(f"{application}/orders/{customer}", timeout=PATIENCE) as stream:
        lines = (json.loads(line) for line in stream)
        found = next(lines)
        while found["id"] < before:  # of the other example
            found = next(lines)
        assert found == {"id": before, "customer": customer}
        log.server.restart()
        after = order()
        assert next(lines) == {"id": after, "customer": customer}
