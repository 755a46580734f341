"""The package `socketio-pg` as it is built: strict types, the committed single file, the size, the version."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from socketio_pg.version import __version__
from tests.support.missing import missing
from tests.support.server import ROOT

JS = ROOT / "js"

#: Bytes with gzip of what `createClient` adds to a page's first files, without socket.io-client.
MAX_SIZE = 6_144


def run(*command: object) -> str:
    """Run a script of the package. It must succeed."""
    node = shutil.which("node")
    if node is None or not (JS / "node_modules" / "rollup").exists():
        missing("the build of the package for browsers", "install Node, then `npm ci` in js/")
    done = subprocess.run([node, *map(str, command)], cwd=JS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The single file, built again. The TypeScript compiler checks all sources, with `strict`."""
    target = tmp_path_factory.mktemp("built") / "socketio_pg.js"
    run("build.mjs", target)
    return target


def test_the_single_file_is_the_one_that_is_built(built: Path) -> None:
    committed = ROOT / "socketio_pg" / "static" / "socketio_pg.js"
    assert committed.read_text() == built.read_text(), "run `npm run build` in js/"


@pytest.mark.usefixtures("built")
def test_the_first_files_are_small_and_the_other_parts_come_later() -> None:
    sizes: dict[str, Any] = json.loads(run("size.mjs"))
    assert sizes["first"] <= MAX_SIZE, sizes
    later = {name.partition("-")[0] for name in sizes["later"]}
    assert {"exact", "login", "many", "presence", "publishing", "reading", "table"} <= later


def test_the_version_is_that_of_the_server() -> None:
    found = json.loads((JS / "package.json").read_text())
    assert re.sub(r"-dev\.", ".dev", found["version"]) == __version__
    assert found["sideEffects"] is False
    assert set(found["peerDependencies"]) == {"react", "socket.io-client"}
    assert "dependencies" not in found
