"""socketio_pg.config: local.cfg has assignments and runs nothing."""

from pathlib import Path

import pytest

from socketio_pg.core.config import Settings, load
from socketio_pg.core.errors import ConfigurationError
from tests.support.settings import assert_one_sentence, load_file

pytestmark = pytest.mark.usefixtures("clean_settings")


@pytest.mark.parametrize(
    "text",
    [
        "import os",
        "from os import environ",
        "print('hello')",
        "def port(): pass",
        "if True:\n    PORT = 1",
        "PORT += 1",
        "del PORT",
        "app.PORT = 1",
        "PORT, HOST = 1, 'a'",
        "PORT",
    ],
)
def test_the_file_has_assignments_only(text: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"local\.cfg line 2: only lines like NAME = 'value' are allowed"
    ) as caught:
        load_file(f"DEBUG = 0\n{text}\n")
    assert_one_sentence(caught.value.message)


CALLS = [
    "open('proof', 'w')",
    "__import__('os').mkdir('proof')",
    'f\'{open("proof", "w")}\'',
    "[open('proof', 'w')]",
    "(lambda: open('proof', 'w'))()",
]


@pytest.mark.parametrize("expression", CALLS)
def test_a_call_in_the_file_is_refused_and_not_made(expression: str) -> None:
    with pytest.raises(ConfigurationError, match="HOST must be a literal value; code is not executed") as caught:
        load_file(f"HOST = {expression}")
    assert_one_sentence(caught.value.message)
    assert not Path("proof").exists()


@pytest.mark.parametrize("expression", CALLS)
def test_a_call_for_a_setting_of_others_is_passed_over_and_not_made(expression: str) -> None:
    assert load_file(f"SOMETHING_ELSE = {expression}") == Settings()
    assert not Path("proof").exists()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("PORT = ", id="no value"),
        pytest.param("PORT = 'abc", id="open quote"),
        pytest.param("PORT: 3030", id="YAML"),
        pytest.param("PORT=3030;;", id="two semicolons"),
        pytest.param("export PORT=3030", id="shell"),
        pytest.param("[section]\nPORT = 1 2", id="ini"),
        pytest.param("PORT = os.environ['PORT']", id="an expression"),
        pytest.param("PORT = OTHER", id="a name"),
        pytest.param("PORT = 1 + 'a'", id="a sum that fails"),
        pytest.param("PORT = {[]: 1}", id="a dictionary that fails"),
        pytest.param("PORT = {{}}", id="a set that fails"),
        pytest.param("PORT = 3030\n\0", id="NUL"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"local\.cfg") as caught:
        load_file(text)
    assert_one_sentence(caught.value.message)


def test_a_file_that_is_not_utf8_is_one_sentence() -> None:
    Path("local.cfg").write_bytes(b"HOST = '\xff'")
    with pytest.raises(ConfigurationError, match=r"local\.cfg cannot be read") as caught:
        load({})
    assert_one_sentence(caught.value.message)


def test_a_folder_in_place_of_the_file_is_one_sentence() -> None:
    Path("local.cfg").mkdir()
    with pytest.raises(ConfigurationError, match=r"local\.cfg cannot be read") as caught:
        load({})
    assert_one_sentence(caught.value.message)


def test_comments_empty_lines_and_values_over_several_lines() -> None:
    settings = load_file("# comment\n\nPORT = 1111  # here too\nHOST = (\n    'exam'\n    'ple'\n)\n")
    assert (settings.port, settings.host) == (1111, "example")


def test_the_last_assignment_counts() -> None:
    assert load_file("PORT = 1\nPORT = 2").port == 2


def test_none_in_the_file_is_the_default() -> None:
    assert load_file("PORT = None\nSQLALCHEMY_DATABASE_URI = None") == Settings()
