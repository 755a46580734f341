"""The commands ``init``, ``rotate-key`` and ``drop``: install the schema, add a cluster key, remove the schema."""

import click

from socketio_pg.cli.command import examples, open_database
from socketio_pg.cli.terminal import Progress, clean, tell, wrapped
from socketio_pg.core import loading
from socketio_pg.postgres import schema
from socketio_pg.postgres.database import fetch, session
from socketio_pg.postgres.trust import verify


@click.command(
    epilog=examples(
        "socketio-pg init",
        "socketio-pg init --server-role web --publisher-role app",
        "socketio-pg init --sql > migrations/0042_socketio_pg.sql",
    )
)
@click.option("--sql", is_flag=True, help="Print the SQL, for your own migrations, without connecting.")
@click.option("--server-role", help="Grant this existing role the privileges that a server needs.")
@click.option("--publisher-role", help="Grant this existing role the privilege to publish.")
@click.option(
    "--client-role", multiple=True, help="Grant this role, named in tokens, the privileges for policies; repeatable."
)
@click.option("--emitter-role", help="Allow this role to emit to all clients: it may read the cluster key.")
@click.option("--consumer-role", help="Allow this role to run durable consumers; see docs/consumer.md.")
@click.option("--admin-role", help="Allow this role to disconnect users and to send to them; see docs/identity.md.")
@click.option("--watcher-role", help="Allow this role to watch its own tables; see docs/watch.md.")
def init(
    sql: bool,
    server_role: str | None,
    publisher_role: str | None,
    client_role: tuple[str, ...],
    watcher_role: str | None,
    emitter_role: str | None,
    consumer_role: str | None,
    admin_role: str | None,
) -> None:
    """Install or upgrade the schema.

    The schema contains the log, watches and policies. The command is idempotent, and safe while servers run. The
    role of DATABASE_URL needs CREATE on the database and becomes the schema's owner; it needs no superuser rights.
    The command also applies MAX_PAYLOAD.
    """
    settings = loading.load()
    roles = (server_role, publisher_role, client_role, watcher_role, emitter_role, consumer_role, admin_role)
    if sql:
        statements = schema.statements(settings.max_payload, *roles, schema_owner=settings.schema_owner)
        click.echo(f"BEGIN;\n\n{statements}\nCOMMIT;")
        return
    database = open_database(settings)
    with session(database, "cli init"):
        pass  # reports connection errors immediately
    with Progress() as progress:
        progress.show("installing the schema …")
        schema.install(database, settings.max_payload, *roles)
    tell(f"Installed: schema socketio_pg, version {schema.VERSION}, on {database}")


@click.command("rotate-key", epilog=examples("socketio-pg rotate-key"))
def rotate_key() -> None:
    """Replace the cluster key.

    The servers seal what they send each other with this key. Running servers seal with the new one after 20 seconds,
    and accept the old one until a minute later: no message is lost. Rotate the key if a role could read it that must
    not. The role of DATABASE_URL must own the schema. Has no effect on servers with CLUSTER_KEY.
    """
    database = open_database(loading.load())
    with session(database, "cli rotate-key") as connection:
        verify(database, connection)
        fetch(connection, "SELECT socketio_pg.rotate_cluster_key()")
    tell(f"A new cluster key is in use in 20 seconds on {database}")


@click.command(epilog=examples("socketio-pg drop", "socketio-pg drop --yes"))
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def drop(yes: bool) -> None:
    """Remove the schema, with all messages.

    Also removes watches, and policies on socketio_pg.messages. Your own tables do not change. Removes nothing if one
    of your own objects depends on the schema. The role must own the schema and the watched tables.
    """
    database = open_database(loading.load())
    with session(database, "cli drop"):
        pass  # reports connection errors before the confirmation
    if not yes:
        question = f"Remove the schema socketio_pg and all messages in it from {clean(str(database))}? [y/N]:"
        question = wrapped(question, 0, 0, error=True)
        click.confirm(question, show_default=False, prompt_suffix=" ", abort=True, err=True)
    with Progress() as progress:
        progress.show("removing the schema …")
        removed = schema.uninstall(database)
    if removed:
        tell(f"Removed: schema socketio_pg on {database}")
    else:
        tell(f"There is no schema socketio_pg on {database}")
