"""The doctor's checks of the names under which settings are given. It shows no values, which may be secrets."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from socketio_pg.core import config, loading
from socketio_pg.core.variables import PREFIX, Given
from socketio_pg.doctor.findings import Finding, warning

_PARSE = {field.name.upper(): field.metadata["parse"] for field in dataclasses.fields(config.Settings)}


def names(found: Mapping[str, Sequence[Given]]) -> Iterator[Finding]:
    """Find names with the prefix that are no settings, and settings that have two values under their two names."""
    for unknown, suggestion in loading.unknown(found):
        remedy = f"rename it {suggestion}" if suggestion else "remove it; `socketio-pg settings` lists all settings"
        yield warning("names", f"{unknown.name} in {unknown.place} is not a setting", remedy)
    for setting in sorted(config.NAMES & found.keys()):
        chosen, *others = found[setting]
        if not chosen.name.startswith(PREFIX):
            continue
        for other in others:
            if not other.name.startswith(PREFIX) and _value(setting, other) != _value(setting, chosen):
                yield warning(
                    setting,
                    f"{other.name} in {other.place} has no effect: {chosen.name} in {chosen.place} has another value",
                    f"remove one of the two; {chosen.name} counts",
                )


def _value(setting: str, given: Given) -> Any:
    try:
        return _PARSE[setting](given.value)
    except ValueError:
        return given.value
