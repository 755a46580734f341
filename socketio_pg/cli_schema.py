"""The command ``init``: the schema in the database."""

import click

from socketio_pg import config, schema
from socketio_pg.command import examples, open_database
from socketio_pg.queries import session


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
def init(sql: bool, server_role: str | None, publisher_role: str | None, client_role: tuple[str, ...]) -> None:
    """Install or upgrade the schema.

    For the log, watches, and policies. Can be run again, also while servers run. The role of DATABASE_URL needs
    CREATE on the database, and owns the schema then; no superuser is needed. The limit MAX_PAYLOAD takes effect
    with it.
    """
    settings = config.load()
    if sql:
        statements = schema.statements(settings.max_payload, server_role, publisher_role, client_role)
        click.echo(f"BEGIN;\n\n{statements}\nCOMMIT;")
        return
    database = open_database(settings)
    with session(database):
        pass  # what is wrong is said at once
    schema.install(database, settings.max_payload, server_role, publisher_role, client_role)
    click.echo(f"Installed: schema socketio_pg, version {schema.VERSION}, on {database}")
