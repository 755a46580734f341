"""What the commands have in common: exit codes, the database of the settings, examples in ``--help``."""

import contextlib
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from socketio_pg.cli.terminal import abandon_output
from socketio_pg.core import config
from socketio_pg.core.errors import (
    AuthenticationUnavailableError,
    ConfigurationError,
    DatabaseUnavailableError,
    InvalidRequestError,
    LogNotInstalledError,
    SocketIOPGError,
)
from socketio_pg.postgres.database import Database

#: Exit codes, for scripts (docs/cli.md). 130 is Ctrl-C's.
OK, FAILED, USAGE, UNAVAILABLE, INTERRUPTED = 0, 1, 2, 3, 130

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
url_option = click.option("--url", help="Talk to the server at this address, and not to the database.")
token_option = click.option(
    "--token",
    envvar="SOCKETIO_PG_TOKEN",
    help="The token for --url. Better in SOCKETIO_PG_TOKEN: others see arguments.",
)


class Failure(click.ClickException):
    """Ends the command with one sentence and an exit code."""

    exit_code = FAILED


class Misuse(Failure):
    exit_code = USAGE


class Unavailable(Failure):
    exit_code = UNAVAILABLE


class Group(click.Group):
    """Commands that are imported when they are needed, and whose errors become sentences and exit codes.

    ``modules`` has the module of each command, in which it has its own name (``watch`` of ``socketio_pg.cli_watch``).
    """

    def __init__(self, *args: Any, modules: Mapping[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._modules:
            return None
        command: click.Command = getattr(importlib.import_module(self._modules[cmd_name]), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        with failures():
            return super().invoke(ctx)


@contextlib.contextmanager
def failures() -> Iterator[None]:
    """The errors of this package as exit codes: never a traceback for what can happen to anybody."""
    try:
        yield
    except BrokenPipeError:
        abandon_output()  # who reads it has seen enough (``head``)
        raise click.exceptions.Exit(OK) from None
    except KeyboardInterrupt:
        raise click.exceptions.Exit(INTERRUPTED) from None
    except (DatabaseUnavailableError, AuthenticationUnavailableError) as error:
        raise Unavailable(error.message) from None
    except (ConnectionError, TimeoutError) as error:  # of `subscriber`
        raise Unavailable(str(error)) from None
    except InvalidRequestError as error:
        raise (Failure if isinstance(error, LogNotInstalledError) else Misuse)(error.message) from None
    except SocketIOPGError as error:
        raise Failure(error.message) from None


def open_database(settings: config.Settings) -> Database:
    """The database of the settings; it is not connected yet. Raises :class:`ConfigurationError` without one."""
    if settings.database_url is None:
        raise ConfigurationError(config.NO_DATABASE)
    return Database(settings.database_url, settings.listen_database_url)


def examples(*lines: str) -> str:
    """An epilog for ``--help``: ``lines`` are commands to type."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def duration(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``15m``, ``1.5h`` or ``7d``. Raises ValueError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text.strip())
    if found is None:
        raise ValueError("a number with s, m, h or d")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}[found[2]]


def as_seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """An option's callback: its text as :func:`duration`."""
    try:
        return None if value is None else duration(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r}; allowed: {error}.", ctx, param) from None


def names(value: Sequence[str]) -> list[str] | None:
    """The names of a repeatable option, which may also stand together with commas between them; None without any."""
    return [name.strip() for part in value for name in part.split(",") if name.strip()] or None
