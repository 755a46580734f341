"""The command ``socketio-pg``: the list of its commands. `command` has the shared parts."""

import click

from socketio_pg.cli.command import Group, examples
from socketio_pg.version import __version__

#: Command → module, in the order of ``--help``.
MODULES = {
    "serve": "socketio_pg.cli.serve",
    "init": "socketio_pg.cli.schema",
    "rotate-key": "socketio_pg.cli.schema",
    "drop": "socketio_pg.cli.schema",
    "publish": "socketio_pg.cli.publish",
    "listen": "socketio_pg.cli.listen",
    "watch": "socketio_pg.cli.watch",
    "unwatch": "socketio_pg.cli.watch",
    "watches": "socketio_pg.cli.watch",
    "types": "socketio_pg.cli.types",
    "presence": "socketio_pg.cli.presence",
    "status": "socketio_pg.cli.status",
    "doctor": "socketio_pg.cli.status",
    "connections": "socketio_pg.cli.control",
    "disconnect": "socketio_pg.cli.control",
    "rules": "socketio_pg.cli.rules",
    "token": "socketio_pg.cli.token",
    "bench": "socketio_pg.cli.selftest",
    "settings": "socketio_pg.cli.serve",
    "completion": "socketio_pg.cli.serve",
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

    Most commands use the database of DATABASE_URL or local.cfg, like the server. 'publish', 'listen' and 'bench' can
    use a running server instead (--url); 'connections' asks one.
    """
