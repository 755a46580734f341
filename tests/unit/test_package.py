"""The package: its imports, its requirements and its command."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from packaging.requirements import Requirement

import socketio_pg
from socketio_pg.cli.main import main
from socketio_pg.core import config
from socketio_pg.pubsub.pubsub import PubSub

pytestmark = pytest.mark.usefixtures("clean_settings")


def run_python(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the test's working folder with the checkout's package."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": str(root)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


# -- import ------------------------------------------------------------------------------------------------------------


def test_import_loads_no_large_packages(root: Path) -> None:
    result = run_python(root, "-c", "import sys, json, socketio_pg; json.dump(sorted(sys.modules), sys.stdout)")
    imported = {name.split(".")[0] for name in json.loads(result.stdout)}
    assert "socketio_pg" in imported
    heavy = {"flask", "flask_socketio", "socketio", "eventlet", "gevent", "sqlalchemy", "psycopg2", "click", "orjson"}
    assert not imported & heavy


def test_pubsub_needs_no_flask(root: Path) -> None:
    code = "import sys, json, socketio_pg.pubsub.pubsub; json.dump(sorted(sys.modules), sys.stdout)"
    imported = set(json.loads(run_python(root, "-c", code).stdout))
    assert not imported & {"flask", "flask_socketio", "socketio", "werkzeug"}


def test_pubsub_is_imported_lazily() -> None:
    assert socketio_pg.PubSub is PubSub


def test_all_public_names_exist() -> None:
    assert {"PubSub", "PayloadTooLargeError", "SocketIOPGError", "__version__"} <= set(socketio_pg.__all__)
    for name in socketio_pg.__all__:
        assert getattr(socketio_pg, name) is not None


@pytest.mark.parametrize("library", ["eventlet", "gevent"])
def test_monkey_patch_uses_the_library_that_green_names(root: Path, library: str) -> None:
    code = """
import socketio_pg; socketio_pg.monkey_patch()
import time
from socketio_pg.core import green_library; print(green_library.patching(), green_library.problem())
print(time.sleep.__module__)
"""
    result = run_python(root, "-c", code, GREEN=library)
    assert result.stdout.split()[:2] == [f"['{library}']", "None"], result.stderr
    assert result.stdout.split()[2].startswith(library)


def test_unknown_attribute_raises_attribute_error() -> None:
    assert not hasattr(socketio_pg, "Pubsub")
    with pytest.raises(AttributeError, match="module 'socketio_pg' has no attribute 'Pubsub'"):
        _ = socketio_pg.Pubsub


def test_version_is_well_formed() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", socketio_pg.__version__)


def test_package_is_marked_as_typed(root: Path) -> None:
    assert (root / "socketio_pg" / "py.typed").exists()


# -- requirements ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["python-socketio", "python-engineio", "flask-socketio", "eventlet", "gunicorn"])
def test_libraries_with_overridden_internals_are_pinned_to_the_tested_minor_release(root: Path, name: str) -> None:
    # setup.py makes install_requires of the same file; tests/live/test_package.py checks the wheel's metadata.
    lines = [line for line in (root / "requirements.txt").read_text().splitlines() if line.startswith(name)]
    [requirement] = map(Requirement, lines)
    assert requirement.name == name
    installed = importlib.metadata.version(name)
    major, minor, _ = installed.split(".")
    assert requirement.specifier.contains(installed), f"the tests run with {name} {installed}"
    assert not requirement.specifier.contains(f"{major}.{int(minor) + 1}.0")
    assert not requirement.specifier.contains(f"{major}.{int(minor) - 1}.0")


# -- the command -------------------------------------------------------------------------------------------------------


def test_module_runs_the_command(root: Path) -> None:
    result = run_python(root, "-m", "socketio_pg", "--version")
    assert result.returncode == 0
    assert result.stdout.strip().endswith(f"version {socketio_pg.__version__}")


@pytest.mark.parametrize(
    ("program", "status"),
    [(["-m", "socketio_pg"], 1), (["{root}/socketio_pg/server.py"], 4)],
    ids=["command", "server"],
)
def test_programs_without_the_requirements_say_how_to_install_them(root: Path, program: list[str], status: int) -> None:
    result = run_python(root, "-S", *(argument.format(root=root) for argument in program))
    assert (result.returncode, result.stdout) == (status, "")
    [line] = result.stderr.splitlines()
    assert re.match(r"(socketio_pg: )?socketio_pg needs the package \w+: run ", line)
    assert f"-m pip install -r {root / 'requirements.txt'}" in line


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["serve", "--help"], ["settings", "-h"]], ids=" ".join)
def test_help(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 0
    assert result.output.startswith("Usage: ")


def test_settings_lists_every_setting_with_default_and_help() -> None:
    result = invoke("settings")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    for line, (name, default, help) in zip(lines, config.describe(), strict=True):
        assert line.split()[0] == name
        assert help in line
        assert line.endswith(f"[default: {default}]") == bool(default)


def test_settings_can_be_listed_with_an_invalid_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "bad")
    assert invoke("settings").exit_code == 0


def assert_one_sentence(result: Result, *words: str) -> None:
    """Assert that the command failed with a single line that contains these words."""
    assert result.exit_code == 1
    [line] = result.output.strip().splitlines()
    assert line.startswith("Error: ")
    for word in words:
        assert word in line


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that `serve` would execute."""
    commands: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: commands.append(arguments))
    return commands


def test_serve_without_a_database_fails_in_one_sentence(executed: list[list[str]]) -> None:
    assert_one_sentence(invoke("serve"), "DATABASE_URL", "local.cfg")
    assert executed == []


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("PORT", "bad", "from 1 to 65535"),
        ("HOST", "  ", "non-empty"),
        ("LOG_LEVEL", "loud", "WARNING"),
        ("DATABASE_URL", "mysql://host/db", "postgresql://"),
    ],
)
def test_serve_with_an_invalid_value_fails_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, executed: list[list[str]], name: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://host/db")
    monkeypatch.setenv(name, value)
    assert_one_sentence(invoke("serve"), name, repr(value), allowed)
    assert executed == []


@pytest.mark.parametrize("port", ["0", "65536", "bad"])
def test_serve_refuses_an_invalid_option(executed: list[list[str]], port: str) -> None:
    result = invoke("serve", "--port", port)
    assert result.exit_code == 2
    assert "--port" in result.output
    assert executed == []


@pytest.mark.parametrize(
    ("environment", "options", "address"),
    [
        ({}, [], "127.0.0.1:3030"),
        ({"PORT": "5000", "HOST": "0.0.0.0"}, [], "0.0.0.0:5000"),
        ({}, ["--port", "5000", "--host", "0.0.0.0"], "0.0.0.0:5000"),
        ({"PORT": "4000", "HOST": "192.0.2.1"}, ["--port", "5000", "--host", "0.0.0.0"], "0.0.0.0:5000"),
        ({"PORT": "4000"}, ["--host", "0.0.0.0"], "0.0.0.0:4000"),
        ({"HOST": "::"}, [], "[::]:3030"),
        ({}, ["--host", "[::1]"], "[::1]:3030"),
    ],
    ids=["defaults", "environment", "options", "options over environment", "one of each", "IPv6", "brackets"],
)
def test_serve_binds_the_configured_address(
    monkeypatch: pytest.MonkeyPatch,
    executed: list[list[str]],
    environment: dict[str, str],
    options: list[str],
    address: str,
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://host/db")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = invoke("serve", *options)
    assert result.exit_code == 0, result.output
    [command] = executed
    assert command[:3] == [sys.executable, "-m", "gunicorn"]
    assert command[command.index("--bind") + 1] == address
    assert "socketio_pg.server:app" in command


def test_serve_reads_local_cfg(clean_settings: Path, executed: list[list[str]]) -> None:
    (clean_settings / "local.cfg").write_text("SQLALCHEMY_DATABASE_URI = 'postgresql://host/db'\nPORT = 5000\n")
    assert invoke("serve").exit_code == 0
    assert "127.0.0.1:5000" in executed[0]


def test_serve_reports_an_error_in_local_cfg(clean_settings: Path, executed: list[list[str]]) -> None:
    (clean_settings / "local.cfg").write_text("import os\n")
    assert_one_sentence(invoke("serve"), "local.cfg", "line 1")
    assert executed == []


# -- errors in a shell -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        pytest.param(arguments, environment, words, marks=() if arguments == daily else pytest.mark.nightly)
        for daily, environment, words in [
            (["-m", "socketio_pg", "serve"], {}, ["DATABASE_URL", "local.cfg"]),
            (["server.py"], {"PORT": "bad"}, ["PORT", "'bad'", "from 1 to 65535"]),
            (
                ["-m", "socketio_pg", "serve"],
                {"DATABASE_URL": "postgresql://host/db", "AUTH": "required"},
                ["AUTH=required needs a key", "JWT_SECRET"],
            ),
        ]
        for arguments in (["-m", "socketio_pg", "serve"], ["server.py"])
    ],
)
def test_failed_start_prints_one_sentence(
    root: Path, arguments: list[str], environment: dict[str, str], words: list[str]
) -> None:
    if arguments == ["server.py"]:
        arguments = [str(root / "socketio_pg" / "server.py")]
    result = run_python(root, *arguments, **environment)
    assert result.returncode not in (0, -1)
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]
