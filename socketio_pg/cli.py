"""The command ``socketio-pg``."""

import os
import sys

import click

from socketio_pg import config
from socketio_pg.errors import ConfigurationError
from socketio_pg.version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="socketio-pg")
def main() -> None:
    """Realtime for the PostgreSQL that you already have."""


@main.command()
@click.option("--host", help="Address to listen on (HOST).")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on (PORT).")
def serve(host: str | None, port: int | None) -> None:
    """Run the production server: gunicorn with one eventlet worker and our settings.

    The database's address comes from DATABASE_URL or local.cfg.
    """
    try:
        given = {"host": host, "port": port}
        settings = config.load(overrides={name: value for name, value in given.items() if value is not None})
    except ConfigurationError as error:
        raise click.ClickException(error.message) from None
    if settings.database_url is None and not settings.debug:
        raise click.ClickException(config.NO_DATABASE)
    arguments = ["-c", "python:socketio_pg.gunicorn_config", "--bind", f"{settings.host}:{settings.port}"]
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", *arguments, "socketio_pg.server:app"])


@main.command()
def settings() -> None:
    """List the settings, with default and meaning."""
    rows = config.describe()
    width = max(len(name) for name, _, _ in rows)
    for name, default, help in rows:
        click.echo(f"{name:{width}}  {help}" + (f" [default: {default}]" if default else ""))
