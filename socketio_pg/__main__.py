"""``python -m socketio_pg``."""

import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements.txt"

try:
    from socketio_pg.cli.main import main
except ModuleNotFoundError as error:
    if not REQUIREMENTS.exists() or str(error.name).startswith("socketio_pg"):
        raise
    sys.exit(
        f"socketio_pg needs the package {error.name}: run {sys.executable} -m pip install -r {REQUIREMENTS} "
        "(or make setup, which makes an environment in .venv)"
    )

main(prog_name="python -m socketio_pg")
