"""The package for npm: exactly its files, its types under strict compilers, and programs in a bare folder."""

import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from socketio_pg.version import __version__
from tests.support import npm, typescript
from tests.support.server import ROOT

#: The compilers of the oldest and the newest version that the types support.
COMPILERS = ("5.0.4", "latest")
#: Modules of the single file for `<script type="module">`, which the package does not need.
STATIC = {"static", "io.static", "parts.static"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return npm.pack(tmp_path_factory.mktemp("npm"))


@pytest.fixture(scope="module")
def bare(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, the stock client, and the programs of js/test/types."""
    folder = tmp_path_factory.mktemp("bare")
    npm.unpack(archive, folder)
    shutil.copytree(typescript.PACKAGE / "test" / "types", folder / "src")
    (folder / "package.json").write_text('{"type": "module"}')
    return folder


def manifest(archive: Path) -> dict[str, Any]:
    with tarfile.open(archive) as opened:
        file = opened.extractfile("package/package.json")
        assert file is not None
        found: dict[str, Any] = json.load(file)
        return found


def test_archive_has_exactly_its_files(archive: Path) -> None:
    sources = {path.relative_to(typescript.PACKAGE / "src") for path in (typescript.PACKAGE / "src").rglob("*.ts*")}
    modules = {path for path in sources if path.stem not in STATIC}
    assert len(modules) > 15
    built = {
        f"dist/{path.with_suffix('')}{end}" for path in modules for end in (".js", ".js.map", ".d.ts", ".d.ts.map")
    }
    with tarfile.open(archive) as opened:
        found = {name.removeprefix("package/") for name in opened.getnames()}
    assert found == {"package.json", "README.md", "LICENSE"} | built | {f"src/{path}" for path in modules}


def test_manifest(archive: Path) -> None:
    found = manifest(archive)
    assert (found["name"], found["license"], found["type"], found["sideEffects"]) == (
        "socketio-pg",
        "MIT",
        "module",
        False,
    )
    assert found.get("dependencies", {}) == {}
    assert set(found["peerDependencies"]) <= {"socket.io-client", "react"}
    assert set(found["peerDependencies"]) - set(found.get("peerDependenciesMeta", {})) == {"socket.io-client"}
    # Python's 1.0.dev0 is npm's 1.0.0-dev.0.
    python = re.sub(r"\.?(dev|a|b|rc)(\d+)$", r"-\1.\2", __version__)
    assert found["version"] in (python, python.replace("-", ".0-", 1), f"{python}.0")
    assert (typescript.PACKAGE / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_publint_finds_nothing(archive: Path) -> None:
    program = typescript.PACKAGE / "node_modules" / "publint" / "src" / "cli.js"
    found = npm.run(["node", str(program), "run", str(archive), "--strict"], typescript.PACKAGE)
    assert "All good!" in found


@pytest.mark.parametrize("resolution", ["nodenext", "bundler"])
def test_types_under_the_strict_compiler(bare: Path, resolution: str) -> None:
    """Also those of the package itself: `skipLibCheck` is off."""
    module = "nodenext" if resolution == "nodenext" else "esnext"
    options = {"moduleResolution": resolution, "module": module, "lib": ["es2022", "dom", "dom.iterable"]}
    assert typescript.errors(bare, skipLibCheck=False, **options) == []


def test_programs_in_a_bare_folder(bare: Path) -> None:
    script = (
        "import * as all from 'socketio-pg'; import * as old from 'socketio-pg/subscriptions';"
        "console.log(JSON.stringify([Object.keys(all).sort(), typeof old.Subscriptions]))"
    )
    names, old = json.loads(npm.run(["node", "--input-type=module", "--eval", script], bare))
    assert names == ["PublishError", "SocketIoPgError", "SubscriptionError", "TokenError", "createClient"]
    assert old == "function"
