"""The command ``socketio-pg``. Each command is in a module ``cli_*``; what they have in common in `command`."""

import click

from socketio_pg.command import Group, examples
from socketio_pg.version import __version__

#: Command → module, in the order of ``--help``.
MODULES = {
    "serve": "socketio_pg.cli_serve",
    "init": "socketio_pg.cli_schema",
    "drop": "socketio_pg.cli_schema",
    "publish": "socketio_pg.cli_publish",
    "listen": "socketio_pg.cli_listen",
    "watch": "socketio_pg.cli_watch",
    "unwatch": "socketio_pg.cli_watch",
    "watches": "socketio_pg.cli_watch",
    "status": "socketio_pg.cli_status",
    "doctor": "socketio_pg.cli_status",
    "token": "socketio_pg.cli_token",
    "bench": "socketio_pg.cli_bench",
    "settings": "socketio_pg.cli_serve",
    "completion": "socketio_pg.cli_serve",
}


@click.group(
    cls=Group,
    modules=MODULES,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "socketio-pg init",
        "socketio-pg serve",
        "socketio-pg listen orders",
        "socketio-pg publish orders '{\"id\": 7}'",
        "socketio-pg doctor",
    )
    + "\n\nExit codes: 0 done, 1 failed, 2 wrong options or arguments, 3 database or server unavailable, 130 Ctrl-C.",
)
@click.version_option(__version__, prog_name="socketio-pg")
def main() -> None:
    """Realtime for the PostgreSQL that you already have.

    The database's address comes from DATABASE_URL or local.cfg, as for the server.
    """
