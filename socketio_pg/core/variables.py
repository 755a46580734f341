"""The two names of a setting, ``SOCKETIO_PG_NAME`` and ``NAME``, and which of them sets it.

Imports nothing but the standard library, because `core.green_library` uses it.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PREFIX = "SOCKETIO_PG_"
ENVIRONMENT = "the environment"
#: Other names that ``local.cfg`` may use, after Flask-SQLAlchemy.
ALIASES = {"SQLALCHEMY_DATABASE_URI": "DATABASE_URL"}
#: Variables with the prefix that are no settings: the command line's token.
OTHERS = frozenset({"SOCKETIO_PG_TOKEN"})

#: Settings of which an empty value is one of its own, and not the default.
MAY_BE_EMPTY = frozenset({"DURABLE_CHANNELS"})

#: Kubernetes describes each Service in the variables of all pods. For one that is called socketio-pg, these are
#: SOCKETIO_PG_SERVICE_HOST, SOCKETIO_PG_PORT=tcp://10.0.0.1:80, SOCKETIO_PG_PORT_80_TCP_ADDR, and so on.
_SERVICE_NAME = re.compile(rf"{PREFIX}(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


@dataclass(frozen=True, slots=True)
class Given:
    """A value of a setting: the name that it has at its place, and the place."""

    name: str
    value: Any
    place: str


def collect(places: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Given]]:
    """Return the values of each name without its prefix, the one that counts first.

    ``places`` has the variables of each place, the strongest place first. A name with the prefix precedes those
    without, wherever they are: programs that have nothing to do with this package may set HOST or DEBUG.
    """
    found: dict[str, list[Given]] = {}
    for prefixed in (True, False):
        for place, variables in places.items():
            for name in reversed(list(variables)):  # the last assignment in a file counts
                if name.startswith(PREFIX) is prefixed:
                    setting = ALIASES.get(name, name.removeprefix(PREFIX))
                    found.setdefault(setting, []).append(Given(name, variables[name], place))
    return found


def of_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that can be settings, of this process's environment by default.

    An empty variable counts as not set, because Procfile runners leave such variables. Not if that is a value of its
    own.
    """
    return {
        name: value
        for name, value in (os.environ if environment is None else environment).items()
        if (value or name.removeprefix(PREFIX) in MAY_BE_EMPTY)
        and name not in ALIASES
        and not _is_of_kubernetes(name, value)
    }


def in_environment(setting: str) -> Given | None:
    """Return what this process's environment gives a setting, for code that must not read all settings; or None."""
    return next(iter(collect({ENVIRONMENT: of_environment()}).get(setting, ())), None)


def _is_of_kubernetes(name: str, value: str) -> bool:
    if not name.startswith(PREFIX):
        return False
    is_address = name.endswith("PORT") and _SERVICE_ADDRESS.match(value) is not None
    return is_address or _SERVICE_NAME.fullmatch(name) is not None
