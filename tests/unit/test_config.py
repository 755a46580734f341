"""Settings: precedence, invalid values, and the table in the docs."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from socketio_pg.core import loading, local_cfg
from socketio_pg.core.addresses import authority
from socketio_pg.core.config import Settings, describe
from socketio_pg.core.errors import ConfigurationError
from socketio_pg.core.loading import load
from socketio_pg.core.variables import ALIASES, PREFIX
from tests.support.settings import assert_one_sentence, load_file

pytestmark = pytest.mark.usefixtures("clean_settings")


NAMES = [field.name.upper() for field in dataclasses.fields(Settings)]


# -- precedence --------------------------------------------------------------------------------------------------------
def test_defaults() -> None:
    assert load({}) == Settings()
    assert Settings().port == 3030
    assert Settings().database_url is None
    assert Settings().cors_allowed_origins is None


def test_file_overrides_defaults() -> None:
    assert load_file("PORT = 1111").port == 1111


def test_environment_overrides_the_file() -> None:
    settings = load_file("PORT = 1111\nHOST = '::1'", {"PORT": "2222"})
    assert (settings.port, settings.host) == (2222, "::1")


def test_overrides_override_the_environment() -> None:
    assert load_file("PORT = 1111", {"PORT": "2222"}, port=3333).port == 3333


def test_process_environment_is_used_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "2222")
    assert load().port == 2222


def test_empty_variable_is_ignored() -> None:
    # Some tools set every variable that they know, even to an empty value.
    assert load_file("PORT = 1111", {"PORT": ""}).port == 1111


def test_only_upper_case_variables_count() -> None:
    assert load({"port": "2222", "socketio_pg_port": "2222", "PATH": "/bin"}) == Settings()


# -- names with the prefix ---------------------------------------------------------------------------------------------
def test_prefixed_name_precedes_the_generic_one_and_the_environment_precedes_the_file() -> None:
    both = {"SOCKETIO_PG_PORT": "3333", "PORT": "4444"}
    file = "SOCKETIO_PG_PORT = 1111\nPORT = 2222"
    assert load_file(file, both).port == 3333
    assert load_file(file, {"PORT": "4444"}).port == 1111
    assert load_file("PORT = 2222", {"PORT": "4444"}).port == 4444
    assert load_file(file, {**both, "SOCKETIO_PG_PORT": ""}).port == 1111, "an empty variable counts as not set"


def test_every_setting_has_a_prefixed_name_in_both_places() -> None:
    for field, (name, default, _) in zip(dataclasses.fields(Settings), describe(), strict=True):
        if not field.metadata["shown"] and default:
            assert load({PREFIX + name: default, name: "\0"}) == Settings()
    address = "postgresql://h/db"
    assert load({"SOCKETIO_PG_DATABASE_URL": address}).database_url == address
    settings = load_file(f"SOCKETIO_PG_DATABASE_URL = {address!r}\nSQLALCHEMY_DATABASE_URI = 'postgresql://other/db'")
    assert settings.database_url == address


def test_error_has_the_name_that_was_given() -> None:
    with pytest.raises(ConfigurationError, match=r"^SOCKETIO_PG_PORT in the environment is 'x'"):
        load({"SOCKETIO_PG_PORT": "x", "PORT": "1"})
    with pytest.raises(ConfigurationError, match=r"^SOCKETIO_PG_AUTH in local\.cfg is 'x'"):
        load_file("SOCKETIO_PG_AUTH = 'x'")
    with pytest.raises(ConfigurationError, match=r"^SQLALCHEMY_DATABASE_URI in local\.cfg is"):
        load_file("SQLALCHEMY_DATABASE_URI = 'mysql://h/db'")


def test_variables_that_kubernetes_sets_for_a_service_named_socketio_pg_are_no_settings() -> None:
    service = {
        "SOCKETIO_PG_SERVICE_HOST": "10.0.0.1", "SOCKETIO_PG_SERVICE_PORT": "80",
        "SOCKETIO_PG_SERVICE_PORT_HTTP": "80", "SOCKETIO_PG_PORT": "tcp://10.0.0.1:80",
        "SOCKETIO_PG_PORT_80_TCP": "tcp://10.0.0.1:80", "SOCKETIO_PG_PORT_80_TCP_PROTO": "tcp",
        "SOCKETIO_PG_PORT_80_TCP_PORT": "80", "SOCKETIO_PG_PORT_80_TCP_ADDR": "10.0.0.1",
        "SOCKETIO_PG_CANARY_PORT": "tcp://10.0.0.2:80", "SOCKETIO_PG_CANARY_SERVICE_HOST": "10.0.0.2",
    }  # fmt: skip
    assert load({**service, "PORT": "4444"}) == Settings(port=4444)
    assert list(loading.unknown(loading.given(service))) == []


def test_unknown_names_with_the_prefix_are_found() -> None:
    Path("local.cfg").write_text("SOCKETIO_PG_SENTRY = connect()\nOTHER = 1", "utf-8")
    with pytest.raises(ConfigurationError, match="SOCKETIO_PG_SENTRY must be a literal value"):
        load({})
    Path("local.cfg").write_text("SOCKETIO_PG_SENTRY = 1\nOTHER = 1", "utf-8")
    found = loading.given({"SOCKETIO_PG_JWT_SECERT": "s3cret", "SOCKETIO_PG_TOKEN": "t", "OTHER_NAME": "1"})
    names = [(given.name, given.place, meant) for given, meant in loading.unknown(found)]
    assert names == [
        ("SOCKETIO_PG_JWT_SECERT", "the environment", "SOCKETIO_PG_JWT_SECRET"),
        ("SOCKETIO_PG_SENTRY", "local.cfg", None),
    ]
    assert "TOKEN" not in NAMES, "SOCKETIO_PG_TOKEN is the command line's"


def test_file_can_have_other_settings() -> None:
    text = "SQLALCHEMY_ECHO = True\nMAIL_SERVER = get_mail_server()\nPORT = 1111"
    assert load_file(text) == Settings(port=1111)


@pytest.mark.parametrize(
    "override", ["prot", "PORT", "database", "sqlalchemy_database_uri"], ids=lambda name: f"override {name}"
)
def test_unknown_override_is_reported(override: str) -> None:
    with pytest.raises(ConfigurationError, match=f"unknown setting: {override}") as caught:
        load({}, overrides={override: 1})
    assert_one_sentence(caught.value.message)


def test_overrides_are_not_modified() -> None:
    overrides: dict[str, object] = {"port": 3333}
    load({}, overrides=overrides)
    assert overrides == {"port": 3333}


@pytest.mark.parametrize(
    ("host", "wanted"), [("::", "[::]:80"), ("::1", "[::1]:80"), ("127.0.0.1", "127.0.0.1:80"), ("a.lan", "a.lan:80")]
)
def test_authority_puts_ipv6_addresses_in_brackets(host: str, wanted: str) -> None:
    assert authority(host, 80) == wanted


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


def settings_with(name: str, value: Any) -> Settings:
    return dataclasses.replace(Settings(), **{name: value})


# -- values ------------------------------------------------------------------------------------------------------------
VALUES: list[tuple[str, object, object]] = [
    *(("debug", text, True) for text in ("1", "true", "True", "YES", "on", " 1 ", True, 1)),
    *(("debug", text, False) for text in ("0", "false", "False", "NO", "off", False, 0)),
    ("port", "1", 1),
    ("port", 65535, 65535),
    ("port", " 80 ", 80),
    ("ping_interval", "2.5", 2.5),
    ("ping_interval", 10, 10.0),
    ("drain_seconds", "0", 0.0),
    ("log_level", "debug", "DEBUG"),
    ("log_level", " Warning", "WARNING"),
    ("host", "0.0.0.0", "0.0.0.0"),
    ("host", " ::1 ", "::1"),
    ("host", "[::]", "::"),
    ("host", "fe80::1%eth0", "fe80::1%eth0"),
    ("host", "my-laptop.lan", "my-laptop.lan"),
    ("secret_key", "s3cret", "s3cret"),
    ("cors_allowed_origins", "*", ("*",)),
    ("cors_allowed_origins", "https://example.com", ("https://example.com",)),
    (
        "cors_allowed_origins",
        "https://a.example/, http://b.example:8080",
        ("https://a.example", "http://b.example:8080"),
    ),
    ("cors_allowed_origins", ["https://a.example", "https://b.example"], ("https://a.example", "https://b.example")),
    ("allowed_hosts", "App.Example., .b.example,*.c.example", ("app.example", ".b.example", "*.c.example")),
    ("allowed_hosts", ["[2001:DB8::1]", "::1", "192.0.2.1", "*"], ("2001:db8::1", "::1", "192.0.2.1", "*")),
]


@pytest.mark.parametrize(("name", "raw", "value"), VALUES, ids=[f"{name}={raw!r}" for name, raw, _ in VALUES])
def test_valid_values_from_the_file_and_from_create_app(name: str, raw: object, value: object) -> None:
    expected = settings_with(name, value)
    assert load({}, overrides={name: raw}) == expected
    assert load_file(f"{name.upper()} = {raw!r}") == expected


@pytest.mark.parametrize(
    ("name", "raw", "value"),
    [row for row in VALUES if isinstance(row[1], str)],
    ids=[f"{name}={raw}" for name, raw, _ in VALUES if isinstance(raw, str)],
)
def test_valid_values_from_the_environment(name: str, raw: str, value: object) -> None:
    assert load({name.upper(): raw}) == settings_with(name, value)


NO_ADDRESSES = ["mysql://host/db", "mysql+pymysql://host/db", "sqlite:///file", "localhost", "http://host", "://"]

#: (setting, description of allowed values) → invalid values. Values that are not strings can only come from the file.
WRONG_VALUES: dict[tuple[str, str], list[object]] = {
    ("PORT", "whole number from 1 to 65535"):
        ["abc", "0", "65536", "-1", "80.0", "1e3", "9" * 30, "²", True, 80.5, [80]],
    ("MAX_CONNECTIONS", "whole number from 1 to 1000000"): ["none", "0"],
    ("DEBUG", "1 or 0, true or false"): ["2", "maybe", "ja", 2, []],
    ("PING_INTERVAL", "seconds from 1 to 3600"): ["abc", "0", "nan", "inf", "-5", "25s", "3601", True],
    ("PING_TIMEOUT", "seconds from 1 to 3600"): ["0.5"],
    ("DRAIN_SECONDS", "seconds from 0 to 8"): ["30"],
    ("LOG_LEVEL", "DEBUG, INFO, WARNING, ERROR, CRITICAL"): ["loud", "WARN", 10],
    ("HOST", "a non-empty string"): ["   ", 127, ["a"]],
    ("HOST", "without a port"): ["localhost:3030", "[::]:3030", "[]", "http://localhost", "a b", "me@localhost"],
    ("EMBEDDED_DATA_DIR", "a non-empty string"): [" "],
    ("CORS_ALLOWED_ORIGINS", "origins like https://example.com"):
        ["example.com", "ftp://a.example", "https://a.example/page", "https://", 5, "null"],
    ("ALLOWED_HOSTS", "names like example.com"):
        ["a.example:80", "https://a.example", "a.*.example", "*a.example", "..a", "a b", "a/", "[a.example]"],
    ("ALLOWED_HOSTS", "at least one name like example.com"): [[]],
    ("DATABASE_URL", "postgresql://"): [*NO_ADDRESSES, "postgresql://[::1/db"],
    ("LISTEN_DATABASE_URL", "postgresql://"): [*NO_ADDRESSES],
    ("DATABASE_URL", "a non-empty string"): [5, "   "],
}  # fmt: skip


WRONG = [(name, raw, allowed) for (name, allowed), values in WRONG_VALUES.items() for raw in values]


@pytest.mark.parametrize(("name", "raw", "allowed"), WRONG, ids=[f"{name}={raw!r}" for name, raw, _ in WRONG])
def test_invalid_value_error_has_setting_value_and_allowed_values(name: str, raw: object, allowed: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_file(f"{name} = {raw!r}")
    message = caught.value.message
    assert_one_sentence(message)
    assert message.startswith(f"{name} in local.cfg is ")
    assert repr(str(raw)) in message
    assert allowed in message.split("allowed: ")[1]


def test_invalid_value_error_has_the_source() -> None:
    with pytest.raises(ConfigurationError, match="PORT in the environment is 'x'"):
        load_file("PORT = 1111", {"PORT": "x"})
    with pytest.raises(ConfigurationError, match=r"PORT in create_app\(\) is 'x'"):
        load({"PORT": "1111"}, overrides={"port": "x"})


def test_invalid_secret_key_is_not_disclosed() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_file("SECRET_KEY = ['s3cret']")
    assert "s3cret" not in caught.value.message
    assert_one_sentence(caught.value.message)


@pytest.mark.parametrize("raw", ["", ",", " , ", []], ids=repr)
def test_empty_origins_never_allow_all_origins(raw: object) -> None:
    # Engine.IO takes an empty list as "do not check the origin", which is the opposite.
    try:
        settings = load_file(f"CORS_ALLOWED_ORIGINS = {raw!r}")
    except ConfigurationError:
        return
    assert settings.cors_allowed_origins is None


# -- the secret key ----------------------------------------------------------------------------------------------------
def test_no_random_secret_key_outside_development() -> None:
    assert Settings().flask_secret_key() is None
    assert Settings(secret_key="given").flask_secret_key() == "given"


def test_secret_key_in_development_is_given_or_random() -> None:
    assert Settings(secret_key="given", debug=True).flask_secret_key() == "given"
    first, second = Settings(debug=True).flask_secret_key(), Settings(debug=True).flask_secret_key()
    assert first is not None
    assert first != second
    assert len(first) >= 32


# -- the table and the docs --------------------------------------------------------------------------------------------
def test_describe_has_every_setting_with_one_line_of_help() -> None:
    rows = describe()
    assert [name for name, _, _ in rows] == NAMES
    for name, default, help in rows:
        assert help, name
        # These texts go into a Markdown table.
        assert not set("|\n`") & set(default), name
        assert not set("|\n") & set(help), name


def test_displayed_default_is_the_default() -> None:
    for field, (name, default, _) in zip(dataclasses.fields(Settings), describe(), strict=True):
        if not field.metadata["shown"] and field.default is not None:
            assert load({name: default}) == Settings()


def render_table() -> str:
    """Return the table as in docs/settings.md between its two marks; settings without a default have an empty cell.

    A row is ``| `PORT` | `3030` | port of the development server |``, or ``| `DATABASE_URL` | | PostgreSQL, … |``.
    """
    lines = ["| setting | default | what it is |", "|---|---|---|"]
    for name, default, help in describe():
        lines.append(f"| `{name}` | `{default}` | {help} |" if default else f"| `{name}` | | {help} |")
    return "\n".join(lines)


def test_docs_have_the_table_of_settings(root: Path) -> None:
    page = (root / "docs" / "settings.md").read_text("utf-8")
    found = re.findall(r"<!-- settings -->\n(.*?)\n<!-- /settings -->", page, re.DOTALL)
    expected = render_table()
    assert len(found) == 1, "docs/settings.md needs the marks <!-- settings --> and <!-- /settings --> once"
    assert found[0].strip() == expected, (
        f"docs/settings.md's table of settings is not the code's, which is:\n\n{expected}\n"
    )


def test_local_cfg_example_has_valid_known_settings(root: Path) -> None:
    example = root / "local.cfg.example"
    # Includes settings in comments.
    text = re.sub(r"^#\s?(?=[A-Z_]+ = )", "", example.read_text("utf-8"), flags=re.MULTILINE)
    names = re.findall(r"^([A-Za-z_]+)\s*=", text, re.MULTILINE)
    assert set(names) <= {*NAMES, *ALIASES}
    assert len(names) == len(set(names))
    assert {"SQLALCHEMY_DATABASE_URI", "DATABASE_URL"} & set(names), "the only required setting"
    assert local_cfg.read(example, NAMES)
    load_file(text)
