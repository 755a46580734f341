"""The command ``socketio-pg``."""

import os
import sys

import click

from socketio_pg import config, schema
from socketio_pg.database import Database
from socketio_pg.errors import ConfigurationError, SocketIOPGError
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
@click.option("--sql", is_flag=True, help="Print the SQL, for migrations of your own, and connect to nothing.")
@click.option("--server-role", help="Grant this role what a server needs. It must exist.")
@click.option("--publisher-role", help="Grant this role what publishing needs. It must exist.")
@click.option(
    "--client-role", multiple=True, help="Grant this role, which tokens name, what policies need; repeatable."
)
def init(sql: bool, server_role: str | None, publisher_role: str | None, client_role: tuple[str, ...]) -> None:
    """Install the schema for the log and for policies, or upgrade it. Can be run again, also while servers run.

    The role of DATABASE_URL needs CREATE on the database, and owns the schema then; no superuser is needed. The limit
    MAX_PAYLOAD takes effect with it.
    """
    try:
        settings = config.load()
        if sql:
            statements = schema.statements(settings.max_payload, server_role, publisher_role, client_role)
            click.echo(f"BEGIN;\n\n{statements}\nCOMMIT;")
            return
        if settings.database_url is None:
            raise ConfigurationError(config.NO_DATABASE)
        database = Database(settings.database_url)
        schema.install(database, settings.max_payload, server_role, publisher_role, client_role)
    except SocketIOPGError as error:
        raise click.ClickException(error.message) from None
    click.echo(f"Installed: schema socketio_pg, version {schema.VERSION}, on {database}")


@main.command()
def settings() -> None:
    """List the settings, with default and meaning."""
    rows = config.describe()
    width = max(len(name) for name, _, _ in rows)
    for name, default, help in rows:
        click.echo(f"{name:{width}}  {help}" + (f" [default: {default}]" if default else ""))
