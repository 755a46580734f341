"""Reads settings from ``local.cfg`` without executing it."""

import ast
from collections.abc import Container
from pathlib import Path
from typing import Any

from socketio_pg.core.errors import ConfigurationError
from socketio_pg.core.variables import ALIASES, PREFIX


def read(path: Path, settings: Container[str]) -> dict[str, Any]:
    """Return what the file at ``path`` assigns to the names of settings, and to all names with their prefix.

    Lines are ``NAME = literal``, as in Flask config files. Executes no code. Raises :class:`ConfigurationError`.
    """
    try:
        tree = ast.parse(path.read_text("utf-8"), str(path))
    except (SyntaxError, ValueError, OSError) as error:
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        raise ConfigurationError(f"{path} cannot be read{line}: lines look like NAME = 'value'.") from None
    values: dict[str, Any] = {}
    for statement in tree.body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else None
        if not isinstance(statement, ast.Assign) or len(statement.targets) != 1 or not isinstance(target, ast.Name):
            raise ConfigurationError(f"{path} line {statement.lineno}: only lines like NAME = 'value' are allowed.")
        name = target.id
        if ALIASES.get(name, name) not in settings and not name.startswith(PREFIX):
            continue  # the file may hold settings of other parts of a Flask application
        values.pop(name, None)  # the order is that of the last assignments
        try:
            values[name] = ast.literal_eval(statement.value)
        except (ValueError, TypeError, RecursionError, MemoryError):
            raise ConfigurationError(
                f"{path} line {statement.lineno}: {name} must be a literal value; code is not executed."
            ) from None
    return values
