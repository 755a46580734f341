"""Pages made of TypeScript: bundles them with the built package, and serves them from an origin of their own."""

import fcntl
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.missing import missing
from tests.support.server import ROOT

PACKAGE = ROOT / "js"
_MODULES = PACKAGE / "node_modules"


def build_package() -> None:
    """Compile the package into ``js/dist``, unless that is newer than its source. Other processes wait."""
    if shutil.which("node") is None or not (_MODULES / "react").exists():
        missing("the tests of the package for browsers", "install Node, then `make setup`")
    with (PACKAGE / "tsconfig.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = PACKAGE / "dist" / "index.js"
        sources = [*(PACKAGE / "src").iterdir(), PACKAGE / "tsconfig.json"]
        if not made.exists() or made.stat().st_mtime < max(path.stat().st_mtime for path in sources):
            subprocess.run(["node", _MODULES / "typescript" / "bin" / "tsc", "-p", PACKAGE], check=True)
            made.touch()


def bundle(entry: Path, target: Path, *options: str) -> None:
    """Bundle a file with esbuild into the folder ``target``, as an application would that has installed the package."""
    build_package()
    with tempfile.TemporaryDirectory() as installed:
        (Path(installed) / "socketio-pg").symlink_to(PACKAGE)
        subprocess.run(
            [_MODULES / ".bin" / "esbuild", entry, "--bundle", "--format=esm", "--jsx=automatic", "--log-level=warning",
             f"--outdir={target}", *options],
            check=True, env=os.environ | {"NODE_PATH": f"{installed}:{_MODULES}"},
        )  # fmt: skip


class Site:
    """Serves a folder, and ``/token?…`` with what ``token`` returns for the text of the query: a status, or a token."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token: Callable[[str], str | int] = lambda query: 404
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *arguments: object) -> None:
                super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

            def do_GET(self) -> None:
                path, _, query = self.path.partition("?")
                if path != "/token":
                    super().do_GET()
                    return
                found = outer.token(query)
                self.send_response(found if isinstance(found, int) else 200)
                self.end_headers()
                if isinstance(found, str):
                    self.wfile.write(found.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
