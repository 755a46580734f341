"""Builds the wheel, and installs it into an empty environment."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

from tests.support.server import ROOT, clean_environment

#: Everything that the wheel is built from.
SOURCES = ("setup.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE", "socketio_pg")


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the sources, and return its path.

    In the checkout, a `build` folder of earlier builds would add modules that no longer exist.
    """
    copy = folder / "sources"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, copy)
    [wheel] = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """Install the wheel into a new environment in ``folder``, and return the folder of its programs."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile", wheel)
    return python.parent


def run(*command: str | Path, folder: Path | None = None, **settings: str) -> str:
    """Run ``command`` without the checkout on its path, and return its output. Fails with its errors."""
    environment = clean_environment(**settings)
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
