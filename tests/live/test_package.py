"""What the wheel contains, and what it requires. tests/live/test_installed.py installs and runs it."""

import email
import zipfile
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.server import ROOT
from tests.support.wheel import build_wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build_wheel(tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return email.message_from_bytes(wheel.read(name))


def test_every_file_of_the_package_is_in_the_wheel_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    files = [path for path in (ROOT / "socketio_pg").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert packed == {path.relative_to(ROOT).as_posix() for path in files}
    assert {
        "socketio_pg/py.typed",
        "socketio_pg/static/test.html",
        "socketio_pg/static/test.css",
        "socketio_pg/static/test.js",
        "socketio_pg/static/socketio_pg.js",
        "socketio_pg/static/demo/index.html",
        "socketio_pg/postgres/sql/1_tables.sql",
        "socketio_pg/postgres/sql/2_functions.sql",
        "socketio_pg/protocol/server.py",
    } <= packed


def test_the_wheel_requires_what_requirements_txt_has_without_pytest(metadata: Message) -> None:
    required = {Requirement(text) for text in metadata.get_all("Requires-Dist", [])}
    production = {requirement for requirement in required if requirement.marker is None}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = {Requirement(line) for line in lines if line and not line.startswith("#")}
    assert production == {requirement for requirement in listed if requirement.name != "pytest"}


@pytest.mark.parametrize("name", ["python-socketio", "python-engineio", "flask-socketio", "eventlet", "gunicorn"])
def test_the_wheel_has_upper_bounds_of_libraries_with_overridden_internals(metadata: Message, name: str) -> None:
    # tests/unit/test_package.py checks that the bounds are those of the tested minor releases.
    requirements = map(Requirement, metadata.get_all("Requires-Dist", []))
    [found] = [requirement for requirement in requirements if requirement.name == name]
    assert {one.operator for one in found.specifier} == {">=", "<"}


def test_the_wheel_installs_the_command(wheel: zipfile.ZipFile) -> None:
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
    assert "socketio-pg = socketio_pg.cli.main:main" in wheel.read(name).decode()


def test_the_sources_of_the_wheel_are_complete(tmp_path: Path, metadata: Message) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).startswith("# socketio_pg")
    assert metadata["Requires-Python"] == ">=3.10"
