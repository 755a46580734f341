"""The commands ``serve``, ``settings`` and ``completion``."""

import os
import sys

import click
from click.shell_completion import get_completion_class

from socketio_pg.cli.command import Failure, examples
from socketio_pg.cli.terminal import say, width, wrapped
from socketio_pg.core import addresses, config, loading
from socketio_pg.core.errors import ConfigurationError
from socketio_pg.doctor import checks_settings
from socketio_pg.workers.loads import MAX_WORKERS


@click.command(epilog=examples("DATABASE_URL=postgresql:///mydb socketio-pg serve", "socketio-pg serve --port 8080"))
@click.option("--host", help="Address to listen on (HOST).")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on (PORT).")
@click.option("--workers", type=click.IntRange(1, MAX_WORKERS), help="Processes that share the clients.")
def serve(host: str | None, port: int | None, workers: int | None) -> None:
    """Run the production server.

    Starts gunicorn with eventlet or gevent workers (GREEN) and socketio_pg's configuration: one worker, or as many as
    --workers or WEB_CONCURRENCY says. Reads the database's
    address from DATABASE_URL or local.cfg.
    """
    given = {"host": host, "port": port}
    settings = loading.load(overrides={name: value for name, value in given.items() if value is not None})
    if settings.database_url is None and not settings.debug:
        raise ConfigurationError(config.NO_DATABASE)
    for finding in checks_settings.configuration(settings):  # gunicorn would print the same among its own log lines
        if finding.level == "error":
            raise ConfigurationError(finding.found)
    address = addresses.authority(settings.host, settings.port)
    arguments = ["-c", "python:socketio_pg.gunicorn_config", "--bind", address]
    if workers is not None:
        arguments += ["--workers", str(workers)]
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", *arguments, "socketio_pg.server:app"])


@click.command(epilog=examples("socketio-pg settings", "socketio-pg settings | grep JWT"))
def settings() -> None:
    """List all settings with defaults and descriptions."""
    rows = config.describe()
    longest = max(len(name) for name, _, _ in rows)
    for name, default, help in rows:
        text = help + (f" [default: {default}]" if default else "")
        if width() is None:
            say(f"{name:{longest}}  {text}")
        else:
            say(f"{click.style(name, bold=True)}\n    {wrapped(text, 4, 4)}")


@click.command(
    epilog=examples(
        'eval "$(socketio-pg completion bash)"     # in ~/.bashrc',
        'eval "$(socketio-pg completion zsh)"      # in ~/.zshrc',
        "socketio-pg completion fish > ~/.config/fish/completions/socketio-pg.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a completion script for a shell."""
    completer = get_completion_class(shell)
    if completer is None:
        raise Failure(f"no completion for {shell}")
    click.echo(completer(ctx.find_root().command, {}, "socketio-pg", "_SOCKETIO_PG_COMPLETE").source())
