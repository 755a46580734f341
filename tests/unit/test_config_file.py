"""Settings: local.cfg has only assignments and is never executed."""

from pathlib import Path

import pytest

from socketio_pg.core.config import Settings
from socketio_pg.core.errors import ConfigurationError
from socketio_pg.core.loading import load
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
def test_file_allows_only_assignments(text: str) -> None:
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
def test_call_in_the_file_is_refused_and_not_executed(expression: str) -> None:
    with pytest.raises(ConfigurationError, match="HOST must be a literal value; code is not executed") as caught:
        load_file(f"HOST = {expression}")
    assert_one_sentence(caught.value.message)
    assert not Path("proof").exists()


@pytest.mark.parametrize("expression", CALLS)
def test_call_for_an_unknown_setting_is_ignored_and_not_executed(expression: str) -> None:
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
def test_syntax_error_is_reported_in_one_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"local\.cfg") as caught:
        load_file(text)
    assert_one_sentence(caught.value.message)


def test_file_that_is_not_utf8_is_reported_in_one_sentence() -> None:
    Path("local.cfg").write_bytes(b"HOST = '\xff'")
    with pytest.raises(ConfigurationError, match=r"local\.cfg cannot be read") as caught:
        load({})
    assert_one_sentence(caught.value.message)


def test_folder_in_place_of_the_file_is_reported_in_one_sentence() -> None:
    Path("local.cfg").mkdir()
    with pytest.raises(ConfigurationError, match=r"local\.cfg cannot be read") as caught:
        load({})
    assert_one_sentence(caught.value.message)


def test_file_can_have_comments_empty_lines_and_multiline_values() -> None:
    settings = load_file("# comment\n\nPORT = 1111  # here too\nHOST = (\n    'exam'\n    'ple'\n)\n")
    assert (settings.port, settings.host) == (1111, "example")


def test_last_assignment_wins() -> None:
    assert load_file("PORT = 1\nPORT = 2").port == 2


def test_none_means_the_default() -> None:
    assert load_file("PORT = None\nSQLALCHEMY_DATABASE_URI = None") == Settings()
