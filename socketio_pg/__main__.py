"""``python -m socketio_pg``."""

import sys

from socketio_pg.engine.hosting import missing_package

try:
    from socketio_pg.cli.main import main
except ModuleNotFoundError as error:
    sys.exit(missing_package(error))

main(prog_name="python -m socketio_pg")
