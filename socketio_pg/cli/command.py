"""Shared by all commands: exit codes, common options, the configured database, examples in ``--help``."""

import contextlib
import difflib
import importlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import click

from socketio_pg.cli.terminal import abandon_output, escape_unencodable, wrapped
from socketio_pg.core import config
from socketio_pg.core.errors import (
    AuthenticationUnavailableError,
    ConfigurationError,
    DatabaseUnavailableError,
    InvalidRequestError,
    LogNotInstalledError,
    SocketIOPGError,
)
from socketio_pg.postgres.database import Database, wait_green

#: Exit codes, for scripts (docs/cli.md). INTERRUPTED is Ctrl-C.
OK, FAILED, USAGE, UNAVAILABLE, INTERRUPTED = 0, 1, 2, 3, 130

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
url_option = click.option("--url", help="Connect to the server at this address instead of the database.")
token_option = click.option(
    "--token",
    envvar="SOCKETIO_PG_TOKEN",
    help="Token for --url. Prefer SOCKETIO_PG_TOKEN: other users of the machine can see arguments.",
)


class Failure(click.ClickException):
    """An error that ends the command with one sentence and an exit code."""

    exit_code = FAILED

    def format_message(self) -> str:
        return wrapped(self.message, len("Error: "), 0, error=True)


class Usage(click.UsageError):
    """An error of click's about options or arguments, wrapped as those of :class:`Failure`."""

    def format_message(self) -> str:
        return wrapped(self.message, len("Error: "), 0, error=True)


class Misuse(Failure):
    exit_code = USAGE


class Unavailable(Failure):
    exit_code = UNAVAILABLE


class Group(click.Group):
    """Imports commands when they are needed, and turns their errors into messages and exit codes.

    ``modules`` maps each command to its module, where the command has the same name (``socketio_pg.cli.watch.watch``).
    """

    def __init__(self, *args: Any, modules: Mapping[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._modules:
            return None
        command: click.Command = getattr(importlib.import_module(self._modules[cmd_name]), cmd_name.replace("-", "_"))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            meant = similar_commands(args[0], self._modules)
            if not meant:
                raise
            listed = " or ".join(f"'{name}'" for name in meant)
            raise click.UsageError(f"No such command '{args[0]}'. Did you mean {listed}?", ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        escape_unencodable()
        with failures():
            try:
                return super().invoke(ctx)
            except click.UsageError as error:
                one_line = re.sub(r"\s*\n\s*", " ", error.format_message())  # click lists choices on lines of their own
                raise Usage(one_line, error.ctx) from error


#: What other programs call these commands.
OTHER_NAMES = {
    "check": "doctor", "config": "settings", "emit": "publish", "install": "init", "migrate": "init",
    "notify": "publish", "remove": "drop", "run": "serve", "send": "publish", "server": "serve", "start": "serve",
    "subscribe": "listen", "tail": "listen", "uninstall": "drop", "upgrade": "init",
}  # fmt: skip


def similar_commands(typed: str, commands: Collection[str]) -> list[str]:
    """Return the commands that somebody who typed ``typed`` may have meant, the likeliest first."""
    if typed in OTHER_NAMES:
        return [OTHER_NAMES[typed]]
    return difflib.get_close_matches(typed, commands, n=3, cutoff=0.6)


@contextlib.contextmanager
def failures() -> Iterator[None]:
    """Turn this package's errors into exit codes. Expected errors show no traceback; bugs do."""
    try:
        yield
    except BrokenPipeError:
        abandon_output()  # the reader has closed the pipe, as ``head`` does
        raise click.exceptions.Exit(OK) from None
    except KeyboardInterrupt:
        raise click.exceptions.Exit(INTERRUPTED) from None
    except (DatabaseUnavailableError, AuthenticationUnavailableError) as error:
        raise Unavailable(str(error)) from None
    except (ConnectionError, TimeoutError) as error:  # from `subscriber`
        raise Unavailable(str(error)) from None
    except InvalidRequestError as error:
        raise (Failure if isinstance(error, LogNotInstalledError) else Misuse)(str(error)) from None
    except SocketIOPGError as error:
        raise Failure(str(error)) from None


def open_database(settings: config.Settings) -> Database:
    """Return the configured database, not yet connected. Raises :class:`ConfigurationError` if none is configured."""
    require_database(settings)
    assert settings.database_url is not None
    wait_green()
    return Database(settings.database_url, settings.listen_database_url, settings.schema_owner)


def require_database(settings: config.Settings) -> None:
    """Raise :class:`ConfigurationError` if no database is configured. Only servers start an embedded one."""
    if settings.database_url is None:
        raise ConfigurationError(
            "No database is configured: set DATABASE_URL in the environment, or SQLALCHEMY_DATABASE_URI in local.cfg. "
            "'make run' prints the address of its database."
        )


def examples(*lines: str) -> str:
    """Return an epilog for ``--help``; ``lines`` are commands to type."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def duration(text: str) -> float:
    """Parse ``90``, ``90s``, ``15m``, ``1.5h`` or ``7d`` into seconds. Raises ValueError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text.strip())
    if found is None:
        raise ValueError("a number followed by s, m, h or d")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}[found[2]]


def as_seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Parse an option's value with :func:`duration`. For ``callback=``."""
    try:
        return None if value is None else duration(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r}; allowed: {error}.", ctx, param) from None


def names(value: Sequence[str]) -> list[str] | None:
    """Return the names of a repeatable option that also accepts comma-separated lists; None without any."""
    return [name.strip() for part in value for name in part.split(",") if name.strip()] or None
