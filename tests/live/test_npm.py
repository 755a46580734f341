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

#: The oldest and the newest compiler that the package supports.
COMPILERS = ("5.0.4", "latest")
EXAMPLES = ("react", "tanstack")
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


@pytest.fixture(scope="module")
def compilers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The compilers of :data:`COMPILERS`: programs for Node."""
    made = {version: npm.install(tmp_path_factory.mktemp("tsc"), f"typescript@{version}") for version in COMPILERS}
    return {version: modules / "typescript" / "bin" / "tsc" for version, modules in made.items()}


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


def problems(bare: Path, resolution: str, tsc: Path | None = None, *, whole: bool) -> list[str]:
    """Compile the programs. ``whole``: check also the package's own declarations, and those of the browser."""
    module = "nodenext" if resolution == "nodenext" else "esnext"
    options: dict[str, Any] = {"moduleResolution": resolution, "module": module, "skipLibCheck": not whole}
    return typescript.errors(bare, tsc=tsc, lib=["es2022", "dom", "dom.iterable"], **options)


def test_types_under_the_strict_compiler(bare: Path) -> None:
    assert problems(bare, "nodenext", whole=False) == []


@pytest.mark.nightly
@pytest.mark.parametrize("version", COMPILERS)
def test_types_under_other_compilers(bare: Path, version: str, compilers: dict[str, Path]) -> None:
    assert problems(bare, "nodenext", compilers[version], whole=True) == []
    assert problems(bare, "bundler", compilers[version], whole=True) == []


@pytest.mark.nightly
def test_are_the_types_wrong(archive: Path, tmp_path: Path) -> None:
    """The package has ES modules only, which is why CommonJS is left out."""
    program = npm.install(tmp_path, "@arethetypeswrong/cli") / ".bin" / "attw"
    found = npm.run([str(program), str(archive), "--profile", "esm-only"], tmp_path)
    assert found.count("node16 (from ESM): 🟢") == found.count("bundler: 🟢") == len(manifest(archive)["exports"])


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_built_in_a_bare_folder(
    archive: Path, example: str, compilers: dict[str, Path], tmp_path: Path
) -> None:
    """With the package as npm has it, by the example's own compiler; then under the oldest and the newest one."""
    folder = npm.build_example(ROOT / "examples" / example, archive, tmp_path / "example")
    for tsc in compilers.values():
        assert npm.run(["node", str(tsc), "--noEmit", "--project", str(folder)], folder) == ""


def test_programs_in_a_bare_folder(bare: Path) -> None:
    """Also of the hooks, without a browser."""
    script = (
        "const all = await import('socketio-pg'), old = await import('socketio-pg/subscriptions');"
        "const hooks = await import('socketio-pg/react');"
        "console.log(JSON.stringify([all, old, hooks].map((one) => Object.keys(one))))"
    )
    names, old, hooks = json.loads(npm.run(["node", "--input-type=module", "--eval", script], bare))
    assert names == ["PublishError", "SocketIoPgError", "SubscriptionError", "TokenError", "createClient"]
    assert "Subscriptions" in old
    assert {"SocketIoPgProvider", "useChannel", "useConnectionState", "usePresence", "useTable"} <= set(hooks)
