"""The commands ``init`` and ``drop``: the schema in the database."""

import click

from socketio_pg.cli.command import examples, open_database
from socketio_pg.core import config
from socketio_pg.postgres import schema
from socketio_pg.postgres.database import session


@click.command(
    epilog=examples(
        "socketio-pg init",
        "socketio-pg init --server-role web --publisher-role app",
        "socketio-pg init --sql > migrations/0042_socketio_pg.sql",
    )
)
@click.option("--sql", is_flag=True, help="Print the SQL, for migrations of your own, and connect to nothing.")
@click.option("--server-role", help="Grant this role what a server needs. It must exist.")
@click.option("--publisher-role", help="Grant this role what publishing needs. It must exist.")
@click.option(
    "--client-role", multiple=True, help="Grant this role, which tokens name, what policies need; repeatable."
)
@click.option("--watcher-role", help="Let this role watch its own tables: see docs/watch.md for what that means.")
def init(
    sql: bool,
    server_role: str | None,
    publisher_role: str | None,
    client_role: tuple[str, ...],
    watcher_role: str | None,
) -> None:
    """Install or upgrade the schema.

    For the log, watches, and policies. Can be run again, also while servers run. The role of DATABASE_URL needs
    CREATE on the database, and owns the schema then; no superuser is needed. The limit MAX_PAYLOAD takes effect
    with it.
    """
    settings = config.load()
    roles = (server_role, publisher_role, client_role, watcher_role)
    if sql:
        statements = schema.statements(settings.max_payload, *roles)
        click.echo(f"BEGIN;\n\n{statements}\nCOMMIT;")
        return
    database = open_database(settings)
    with session(database):
        pass  # what is wrong is said at once
    schema.install(database, settings.max_payload, *roles)
    click.echo(f"Installed: schema socketio_pg, version {schema.VERSION}, on {database}")


@click.command(epilog=examples("socketio-pg drop", "socketio-pg drop --yes"))
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop(yes: bool) -> None:
    """Remove the schema, with all messages.

    And with watches and policies on socketio_pg.messages. Your own tables stay as they were. What is not ours and uses
    the schema stops it: then nothing is removed. The role needs to own the schema and the watched tables.
    """
    database = open_database(config.load())
    with session(database):
        pass  # what is wrong is said before anything is asked
    if not yes:
        click.confirm(f"Remove the schema socketio_pg and all messages in it from {database}?", abort=True, err=True)
    if schema.uninstall(database):
        click.echo(f"Removed: schema socketio_pg on {database}")
    else:
        click.echo(f"There is no schema socketio_pg on {database}")
