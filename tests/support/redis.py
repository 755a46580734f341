"""A real Redis."""

import shutil
import subprocess
import tempfile

from tests.support.missing import missing
from tests.support.patience import PATIENCE, until
from tests.support.server import free_port, listens


class Redis:
    """redis-server without persistence, always on the same port, so that it can be stopped and started."""

    def __init__(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            missing("the tests with Redis", "install redis-server (apt install redis-server)")
        self._program = program
        self.port = free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="redis-")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self._folder.name],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        until(lambda: listens(self.port), "Redis listens")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)
            self._process = None

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def close(self) -> None:
        self.kill()
        self._folder.cleanup()
