"""``python -m socketio_pg``."""

from socketio_pg.cli.main import main

main(prog_name="python -m socketio_pg")
