"""Reads the settings: the environment over ``local.cfg`` over the defaults."""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from socketio_pg.core import local_cfg, variables
from socketio_pg.core.config import NAMES, Settings
from socketio_pg.core.errors import ConfigurationError

LOCAL_CFG = Path("local.cfg")


def load(
    environment: Mapping[str, str] | None = None,
    file: Path | None = LOCAL_CFG,
    overrides: Mapping[str, object] | None = None,
) -> Settings:
    """Return the settings: ``overrides`` (field names) over the environment over ``file`` over the defaults.

    A name with the prefix SOCKETIO_PG_ precedes one without, also when it is in the file.

    Raises :class:`ConfigurationError` with one sentence that names the setting, its value and the allowed values.
    """
    found = given(environment, file)
    overrides = dict(overrides or {})
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Settings):
        name = field.name.upper()
        if field.name in overrides:
            chosen = variables.Given(name, overrides.pop(field.name), "create_app()")
        elif name in found:
            chosen = found[name][0]
        else:
            continue
        if chosen.value is None:
            continue
        try:
            values[field.name] = field.metadata["parse"](chosen.value)
        except ValueError as error:
            shown = field.metadata["show"](str(chosen.value))
            raise ConfigurationError(f"{chosen.name} in {chosen.place} is {shown!r}; allowed: {error}.") from None
    if overrides:
        raise ConfigurationError(f"unknown setting: {', '.join(sorted(overrides))}.")
    return Settings(**values)


def given(
    environment: Mapping[str, str] | None = None, file: Path | None = LOCAL_CFG
) -> dict[str, list[variables.Given]]:
    """Return all values in the environment and the file, of settings and of other names, as `variables.collect` does.

    Raises :class:`ConfigurationError` if the file cannot be read.
    """
    places: dict[str, Mapping[str, Any]] = {variables.ENVIRONMENT: variables.of_environment(environment)}
    if file is not None and file.exists():
        places[str(file)] = local_cfg.read(file, NAMES)
    return variables.collect(places)


def unknown(found: Mapping[str, Sequence[variables.Given]]) -> Iterator[tuple[variables.Given, str | None]]:
    """Yield each name in ``found`` that has the prefix and is no setting, with the name that may have been meant."""
    for setting in sorted(found.keys() - NAMES):
        similar = difflib.get_close_matches(setting, NAMES, 1, 0.75)
        for one in found[setting]:
            if one.name.startswith(variables.PREFIX) and one.name not in variables.OTHERS:
                yield one, variables.PREFIX + similar[0] if similar else None
