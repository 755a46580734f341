"""The package of js/ as npm would publish it, in folders that have nothing else."""

import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.bundles import PACKAGE, build_package
from tests.support.missing import missing


def pack(folder: Path) -> Path:
    """Build the package in a copy of js/. Return the archive that `npm publish` would send."""
    if shutil.which("npm") is None:
        missing("The package for browsers", "install Node and npm, and run 'make setup'")
    build_package()
    copy = folder / "js"
    modules = {path.stem for path in (PACKAGE / "src").rglob("*.ts*")}

    def left_out(place: str, names: list[str]) -> list[str]:
        """Also what an earlier build has left, of modules that are no more."""
        return [
            name
            for name in names
            if name == "node_modules"
            or (Path(place).name == "dist" and re.sub(r"(\.d)?\.[jt]s(\.map)?$", "", name) not in modules)
        ]

    shutil.copytree(PACKAGE, copy, ignore=left_out)
    [found] = json.loads(run(["npm", "pack", "--json", "--ignore-scripts", "--pack-destination", str(folder)], copy))
    return folder / str(found["filename"])


def unpack(archive: Path, folder: Path) -> Path:
    """Put the package into ``node_modules`` of a folder, with its peers and their types. Return its place."""
    modules = folder / "node_modules"
    modules.mkdir(parents=True)
    with tarfile.open(archive) as opened:
        opened.extractall(modules, filter="data")
    (modules / "package").rename(modules / "socketio-pg")
    for name in ("socket.io-client", "react", "@types/react", "csstype"):
        (modules / name).parent.mkdir(exist_ok=True)
        (modules / name).symlink_to(PACKAGE / "node_modules" / name)
    return modules / "socketio-pg"


def run(command: Sequence[str], folder: Path) -> str:
    """Run a command. Return its output; fail with all that it has printed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


def install(folder: Path, *packages: str) -> Path:
    """Install packages of the registry, or those of ``package.json``, in a folder. Return ``node_modules``."""
    if not (folder / "package.json").exists():
        (folder / "package.json").write_text('{"private": true}')
    run(["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", *packages], folder)
    return folder / "node_modules"


def build_example(example: Path, archive: Path, folder: Path) -> Path:
    """Build an example in a new folder, with the package from an archive in place of js/. Return the folder."""
    ignored = shutil.ignore_patterns("node_modules", "dist", "package-lock.json")
    shutil.copytree(example, folder, ignore=ignored)
    wanted = json.loads((folder / "package.json").read_text())
    assert wanted["dependencies"]["socketio-pg"] == "file:../../js"
    wanted["dependencies"]["socketio-pg"] = f"file:{archive}"
    (folder / "package.json").write_text(json.dumps(wanted))
    install(folder)
    run(["npm", "run", "build"], folder)
    assert list((folder / "dist").rglob("*.js"))
    return folder
