"""Starts ``python -m MODULE`` quickly: forks it from a process that has imported what MODULE imports first.

The tests start hundreds of servers and commands, and imports take more than half of the CPU time of each start. A fork
has the arguments, environment, working directory and descriptors of a process of its own.
"""

import atexit
import contextlib
import dataclasses
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from socketio_pg.core import green_library

ROOT = Path(__file__).resolve().parents[2]

#: Module → what is imported before the fork. For gunicorn: what its configuration file imports, then its own modules.
#: The last one makes eventlet patch the standard library; then follows what the application imports. That is the order
#: in production too, where only the worker imports the application. gevent patches in the worker, so that the
#: application cannot be imported earlier.
PRELOADED = {
    "gunicorn": (
        *(f"socketio_pg.core.{name}" for name in ("config", "errors", "logs")),
        *(f"gunicorn.{name}" for name in ("app.wsgiapp", "arbiter", "glogging", "reloader", "systemd")),
        *{
            "eventlet": ("gunicorn.workers.geventlet", "socketio_pg.app"),
            "gevent": ("gunicorn.workers.ggevent",),
        }[green_library.name()],
    ),
    "socketio_pg": tuple(
        f"socketio_pg.cli.{name}"
        for name in ("main", "listen", "publish", "schema", "selftest", "status", "token", "watch")
    ),
}


@dataclasses.dataclass(frozen=True)
class Command:
    """``python -m module *arguments``."""

    module: str
    arguments: Sequence[str]
    directory: str
    environment: dict[str, str]
    new_session: bool


class Process:
    """A forked process, with the methods of :class:`subprocess.Popen` that the tests use."""

    def __init__(self, status: int) -> None:
        #: The template process writes the process id into it, and later the exit code; a line each.
        self._status = os.fdopen(status, "rb", buffering=0)
        pid = self._status.readline()
        if not pid:
            raise RuntimeError("the template process has ended; its errors are in the standard error of the tests")
        self.pid = int(pid)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._status, select.POLLIN)
            if not poll.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Template:
    """A process that has imported ``PRELOADED[module]``, and forks. It ends with the process of the tests.

    ``library`` is the value of GREEN, or empty.
    """

    def __init__(self, module: str, library: str) -> None:
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.forks", str(theirs.fileno()), module],
                cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), green_library.SETTING: library},
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            )  # fmt: skip
        atexit.register(self._close)

    def _close(self) -> None:
        self._control.close()
        self._process.wait()

    def fork(self, command: Command, descriptors: Sequence[int]) -> Process:
        reading, writing = os.pipe()
        try:
            with self._lock:
                message = json.dumps(dataclasses.asdict(command)).encode()
                socket.send_fds(self._control, [message], [*descriptors, writing])
        finally:
            os.close(writing)
        return Process(reading)


#: By module and library.
_templates: dict[tuple[str, str], Template] = {}
_lock = threading.Lock()


def start(
    module: str,
    *arguments: str,
    directory: Path,
    environment: dict[str, str],
    descriptors: tuple[int, int, int],
    new_session: bool = False,
) -> Process:
    """Start ``python -m module *arguments``; ``descriptors``: its stdin, stdout and stderr, which stay open here."""
    key = (module, environment.get(green_library.SETTING, ""))
    with _lock:
        if key not in _templates:
            _templates[key] = Template(*key)
    command = Command(module, arguments, str(directory), environment, new_session)
    return _templates[key].fork(command, descriptors)


# -- in the template process -------------------------------------------------------------------------------------------


class Forker:
    """Forks for each command that comes in on ``control``. Made before eventlet patches sockets and ``select``."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._ended, self._wakes = socket.socketpair()
        for one in (self._ended, self._wakes):
            one.setblocking(False)
        self._poll = select.poll()
        for one in (self._control, self._ended):
            self._poll.register(one, select.POLLIN)
        #: Process id → where its exit code goes.
        self._statuses: dict[int, int] = {}

    def run(self) -> Command | None:
        """Returns the command in the fork, and None when the process of the tests has ended."""
        signal.set_wakeup_fd(self._wakes.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            ready = {descriptor for descriptor, _ in self._poll.poll()}
            if self._ended.fileno() in ready:
                self._ended.recv(1000)
                self._report_ended()
            if self._control.fileno() in ready:
                message, descriptors, _, _ = socket.recv_fds(self._control, 1_000_000, 4)
                if not message:
                    return None
                pid = os.fork()
                if pid == 0:
                    self._leave(descriptors)
                    return Command(**json.loads(message))
                self._statuses[pid] = descriptors.pop()
                os.write(self._statuses[pid], b"%d\n" % pid)
                for descriptor in descriptors:
                    os.close(descriptor)

    def _leave(self, descriptors: Sequence[int]) -> None:
        """In the fork: take the command's descriptors and none of the others."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # A shell that starts the tests with `&` lets them, and their commands, ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, descriptor in enumerate(descriptors[:3]):
            os.dup2(descriptor, number)
        for descriptor in (*descriptors, *self._statuses.values()):
            os.close(descriptor)
        for one in (self._control, self._ended, self._wakes):
            one.close()

    def _report_ended(self) -> None:
        while self._statuses:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            with contextlib.suppress(BrokenPipeError):  # nobody waits for it
                os.write(self._statuses[pid], b"%d\n" % os.waitstatus_to_exitcode(status))
            os.close(self._statuses.pop(pid))


def become(command: Command) -> None:
    """Run ``command`` in this process."""
    if command.new_session:
        os.setsid()
    os.chdir(command.directory)
    os.environ.clear()
    os.environ.update(command.environment)
    paths = command.environment.get("PYTHONPATH", "").split(os.pathsep)
    # As `python -m` has it: the working directory, PYTHONPATH, the installation.
    sys.path[:] = [command.directory, *filter(None, paths), *(path for path in sys.path if path != str(ROOT))]
    sys.argv[1:] = command.arguments
    unbuffered = "PYTHONUNBUFFERED" in command.environment
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        stream.reconfigure(line_buffering=os.isatty(number) or number == 2, write_through=unbuffered)  # type: ignore[union-attr]
    runpy.run_module(command.module, run_name="__main__", alter_sys=True)


def main() -> None:
    forker = Forker(socket.socket(fileno=int(sys.argv[1])))
    module = sys.argv[2]
    for name in PRELOADED[module]:
        importlib.import_module(name)
    if module == "socketio_pg":
        # Commands end soon, and would spend most of their time on a collection of all that is imported.
        gc.freeze()
    command = forker.run()
    if command is not None:
        become(command)


if __name__ == "__main__":
    main()
