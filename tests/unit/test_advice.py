"""What errors, help and the doctor tell people to do can be done: the commands, options, settings and files exist."""

import ast
import functools
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement

from socketio_pg.cli.main import MODULES, main
from socketio_pg.cluster import select
from socketio_pg.core import config, green_library
from socketio_pg.postgres import embedded


def texts(path: Path) -> Iterator[str]:
    """Yield the texts of a Python file; values that are inserted into them are shown as ``{}``."""
    tree = ast.parse(path.read_text("utf-8"))
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


def sources(root: Path) -> list[Path]:
    package = root / "socketio_pg"
    found = [path for ending in ("py", "sql", "js", "html") for path in package.rglob(f"*.{ending}")]
    return [path for path in found if "vendor" not in path.parts]


@functools.cache
def advice(root: Path) -> list[str]:
    """Return all texts of the package's Python files, and its SQL, scripts and pages as they are."""
    found: list[str] = []
    for path in sources(root):
        found += texts(path) if path.suffix == ".py" else [path.read_text("utf-8")]
    return found


def remedies(root: Path) -> list[str]:
    """Return the texts of the doctor."""
    return [text for path in (root / "socketio_pg" / "doctor").glob("*.py") for text in texts(path)]


def options_of(name: str) -> set[str]:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return {option for parameter in command.params for option in parameter.opts} | {"--help"}


def test_named_commands_and_their_options_exist(root: Path) -> None:
    found = [
        (name, options)
        for text in advice(root)
        for name, options in re.findall(r"socketio-pg[ \n]+([a-z][a-z-]+)((?: +(?:--?[a-z-]+|\{\}))*)", text)
    ]
    assert {"init", "watch", "doctor"} <= {name for name, _ in found}
    for name, options in found:
        assert name in MODULES, name
        assert set(re.findall(r"--?[a-z][a-z-]*", options)) <= options_of(name), f"{name}{options}"


def test_settings_named_in_the_doctors_advice_exist(root: Path) -> None:
    settings = {name for name, _, _ in config.describe()}
    others = {"GUNICORN_CMD_ARGS", "WEB_CONCURRENCY"}
    names = {name for text in remedies(root) for name in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", text)}
    assert {"LISTEN_DATABASE_URL", "JWKS_URL", "ALLOWED_HOSTS"} <= names
    assert names - settings - others == set()


def test_files_named_in_advice_exist(root: Path) -> None:
    named = {name for text in advice(root) for name in re.findall(r"\bdocs/[\w.-]+\.md\b", text)}
    assert "docs/security.md" in named
    assert {name for name in named if not (root / name).exists()} == set()


def test_targets_of_make_exist(root: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {name for text in advice(root) for name in re.findall(r"\bmake (setup|run|test|[a-z]+-[a-z]+)\b", text)}
    assert "setup" in named
    assert named <= targets


def test_nothing_is_installed_under_this_projects_name(root: Path) -> None:
    """On the public index the name belongs to another project."""
    documents = [*root.glob("*.md"), *(root / "docs").glob("*.md"), *(root / "deploy").iterdir(), root / "Makefile"]
    for path in [*sources(root), *documents]:
        assert not re.search(r"pip3? install [^\n]*socketio[_-]pg\b", path.read_text("utf-8")), path


@pytest.mark.parametrize("extra", ["embedded", "redis", "valkey", "kafka"])
def test_missing_packages_are_named_as_the_extras_require_them(root: Path, extra: str) -> None:
    named = embedded.REQUIREMENT if extra == "embedded" else select.REQUIREMENTS[extra]
    assert f'"{extra}": ["{named}"]' in (root / "setup.py").read_text("utf-8")


def test_versions_in_the_doctors_advice_are_those_of_the_requirements(root: Path) -> None:
    lines = (root / "requirements.txt").read_text("utf-8").splitlines()
    required = {Requirement(line) for line in lines if line and not line.startswith("#")}
    named = {name for text in remedies(root) for name in re.findall(r"pip install '?([^']+)", text)}
    assert named == {"{}"}, "those of core/green_library"
    assert {
        Requirement(texts["eventlet"]) for texts in (green_library.GUNICORN, green_library.REQUIREMENTS)
    } <= required
    assert Requirement(green_library.GUNICORN["gevent"]).specifier.contains(metadata.version("gunicorn"))
    assert f'"gevent": ["{green_library.REQUIREMENTS["gevent"]}"]' in (root / "setup.py").read_text("utf-8")
