"""The methods of python-socketio, python-engineio, Flask-SocketIO and eventlet that this package overrides.

:func:`found` reads them from the code, :func:`documented` from the table in docs/architecture.md.
`python -m tests.support.overrides` prints the table's rows for the current code, and with `--json` the signature and
the source of each overridden method, which `make upstream` compares.
"""

import argparse
import importlib
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

SECTION = "## Overridden methods of python-socketio and python-engineio"
#: The packages whose classes are subclassed.
LIBRARIES = ("socketio", "engineio", "flask_socketio", "eventlet", "gevent")
#: Modules that start a server or a command when they are imported.
_PROGRAMS = ("socketio_pg.server", "socketio_pg.__main__")
_ROW = re.compile(r"\| `([\w.]+)` \| `([\w.]+)` \| `(\w+)(\(.*?\))` \| .+ \|")


@dataclass(frozen=True, order=True, slots=True)
class Override:
    """A method of the class ``upstream`` that ``ours`` overrides, with its upstream signature."""

    ours: str
    upstream: str
    method: str
    signature: str

    def row(self) -> str:
        return f"| `{self.ours}` | `{self.upstream}` | `{self.method}{self.signature}` | TODO: what it does |"


def documented(root: Path) -> list[Override]:
    """Return the rows of the table, in order. Raises ValueError for an invalid row."""
    text = (root / "docs" / "architecture.md").read_text("utf-8").split(f"{SECTION}\n")[1].split("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    overrides = []
    for line in rows:
        match = _ROW.fullmatch(line)
        if match is None:
            raise ValueError(f"not a row of overridden methods: {line}")
        overrides.append(Override(*match.groups()))
    return overrides


def modules() -> Iterator[ModuleType]:
    """Yield all modules of the package that can be imported without starting anything."""
    package = importlib.import_module("socketio_pg")
    for module in pkgutil.walk_packages(package.__path__, "socketio_pg."):
        if module.name not in _PROGRAMS:
            yield importlib.import_module(module.name)


def found() -> list[Override]:
    """Return all methods in classes of the package that override a method of an upstream base class."""
    classes = {
        value
        for module in modules()
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == module.__name__
    }
    return sorted(override for one in classes for override in _overrides(one))


def _overrides(ours: type) -> Iterator[Override]:
    upstream = [base for base in ours.__mro__ if base.__module__.partition(".")[0] in LIBRARIES]
    for name, value in vars(ours).items():
        if not inspect.isfunction(value):
            continue
        bases = [base for base in upstream if inspect.isfunction(getattr(base, name, None))]
        if bases:
            yield Override(_name(ours), _name(bases[0]), name, signature(getattr(bases[0], name)))


def _name(one: type) -> str:
    """Return the import path of a class: `socketio.Server`, `engineio.socket.Socket`, `engine.server.Engine`."""
    module = one.__module__.removeprefix("socketio_pg.")
    package = module.partition(".")[0]
    exported = getattr(sys.modules.get(package), one.__name__, None) is one
    return f"{package if exported else module}.{one.__name__}"


def signature(function: Any) -> str:
    """Return the names of the parameters without `self`."""
    stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parameters = [stars.get(one.kind, "") + name for name, one in inspect.signature(function).parameters.items()]
    return f"({', '.join(parameters[1:])})"


def upstream_class(name: str) -> type | None:
    """Return the class in the column "upstream"; None if it no longer exists."""
    module, _, one = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), one, None)
    except ImportError:
        return None


def upstream_method(override: Override) -> Any:
    """Return the overridden method of the installed library; None if it or its class no longer exists."""
    return getattr(upstream_class(override.upstream), override.method, None)


def snapshot(overrides: list[Override]) -> dict[str, dict[str, str]]:
    """Return signature (with defaults) and source of each method that still exists upstream, by name."""
    methods = {f"{one.upstream}.{one.method}": upstream_method(one) for one in overrides}
    return {
        name: {"signature": str(inspect.signature(method)), "source": inspect.getsource(method)}
        for name, method in methods.items()
        if method is not None
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.overrides", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the documented methods as installed")
    if parser.parse_args().json:
        json.dump(snapshot(documented(Path(__file__).parents[2])), sys.stdout)
        return
    for override in found():
        print(override.row())


if __name__ == "__main__":
    main()
