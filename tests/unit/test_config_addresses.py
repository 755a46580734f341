"""Settings: all forms of database URLs, and passwords that never appear in texts."""

from pathlib import Path

import pytest
from sqlalchemy import make_url

from socketio_pg.core.addresses import database_url, redact
from socketio_pg.core.errors import ConfigurationError
from socketio_pg.core.loading import load
from tests.support.settings import load_file

pytestmark = pytest.mark.usefixtures("clean_settings")


# -- database URLs -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["DATABASE_URL", "LISTEN_DATABASE_URL"])
@pytest.mark.parametrize(
    ("raw", "address"),
    [
        ("postgres://u:p@h:5432/db", "postgresql://u:p@h:5432/db"),
        ("postgresql://u:p@h:5432/db", "postgresql://u:p@h:5432/db"),
        ("postgresql+psycopg2://u:p@h:5432/db", "postgresql://u:p@h:5432/db"),
        ("postgresql+psycopg://u:p@h:5432/db", "postgresql://u:p@h:5432/db"),
        ("postgresql+psycopg_async://h/db", "postgresql://h/db"),
        ("postgresql+asyncpg://h/db", "postgresql://h/db"),
        ("postgres+psycopg://h/db", "postgresql://h/db"),
        (" postgresql://h/db\n", "postgresql://h/db"),
        ("postgresql://", "postgresql://"),
        ("postgresql:///db?host=/run/postgresql", "postgresql:///db?host=/run/postgresql"),
        ("postgresql://h1:1,h2:2/db?target_session_attrs=read-write",
         "postgresql://h1:1,h2:2/db?target_session_attrs=read-write"),
        ("postgresql://[::1]:5432/db?sslmode=require&connect_timeout=3",
         "postgresql://[::1]:5432/db?sslmode=require&connect_timeout=3"),
        ("postgresql://u:p%40%3A%2F%23@h/db", "postgresql://u:p%40%3A%2F%23@h/db"),
        ("postgresql://u:p#s@h/db", "postgresql://u:p#s@h/db"),
        ("host=h dbname=db", "host=h dbname=db"),
        ("dbname = db user = 'a b'", "dbname = db user = 'a b'"),
        ("service=main", "service=main"),
        ("sslmode=require host=h", "sslmode=require host=h"),
        ("host=h password='a://b'", "host=h password='a://b'"),
    ],
)  # fmt: skip
def test_url_forms_of_libpq_sqlalchemy_and_heroku(name: str, raw: str, address: str) -> None:
    settings = load({name: raw})
    assert getattr(settings, name.lower()) == address


def test_url_object_of_sqlalchemy_is_accepted() -> None:
    assert database_url(make_url("postgresql+psycopg://u:s3cret@h/db")) == "postgresql://u:s3cret@h/db"
    with pytest.raises(ConfigurationError) as caught:
        database_url(make_url("mysql://u:s3cret@h/db"))
    assert "s3cret" not in str(caught.value)


def test_flask_sqlalchemy_setting_is_accepted_in_the_file() -> None:
    settings = load_file("SQLALCHEMY_DATABASE_URI = 'postgresql+psycopg2://h/db'")
    assert settings.database_url == "postgresql://h/db"


def test_environment_overrides_the_flask_sqlalchemy_setting() -> None:
    settings = load_file("SQLALCHEMY_DATABASE_URI = 'postgresql://file/db'", {"DATABASE_URL": "postgresql://env/db"})
    assert settings.database_url == "postgresql://env/db"


# -- passwords never appear --------------------------------------------------------------------------------------------

#: Valid URLs; their passwords consist of the words "s3cret" and "tail1e".
WITH_PASSWORD = {
    "plain": "postgresql://user:s3cret@host:5432/db",
    "postgres://": "postgres://user:s3cret@host/db",
    "SQLAlchemy's": "postgresql+psycopg://user:s3cret@host/db",
    "no user": "postgresql://:s3cret@host/db",
    "no host": "postgresql://user:s3cret@/db",
    "IPv6": "postgresql://user:s3cret@[::1]:5432/db",
    "encoded @": "postgresql://user:s3cret%40tail1e@host/db",
    "encoded :": "postgresql://user:s3cret%3Atail1e@host/db",
    "encoded /": "postgresql://user:s3cret%2Ftail1e@host/db",
    "encoded #": "postgresql://user:s3cret%23tail1e@host/db",
    "encoded ?": "postgresql://user:s3cret%3Ftail1e@host/db",
    "bare :": "postgresql://user:s3cret:tail1e@host/db",
    "bare #": "postgresql://user:s3cret#tail1e@host/db",
    "bare ?": "postgresql://user:s3cret?tail1e@host/db",
    "bare @": "postgresql://user:s3cret@tail1e@host/db",
    "bare /": "postgresql://user:s3cret/tail1e@host/db",
    "other characters": "postgresql://user:s3cret!$&'()*+,;=tail1e@host/db",
    "query": "postgresql://host/db?user=u&password=s3cret",
    "query, first": "postgresql://host/db?password=s3cret&sslmode=require",
    "query, encoded &": "postgresql://host/db?password=s3cret%26tail1e&user=u",
    "query, with @ and :": "postgresql://user@host/db?password=s3cret:tail1e@x",
    "query, key file": "postgresql://host/db?sslpassword=s3cret",
    "both": "postgresql://user:s3cret@host/db?sslpassword=tail1e",
    "key=value": "host=h user=u password=s3cret dbname=db",
    "key=value, last": "host=h password=s3cret",
    "key=value, first": "password=s3cret host=h",
    "key=value, spaces": "host = h password = s3cret",
    "key=value, quoted": "host=h password='s3cret tail1e' user=u",
    "key=value, escaped quote": r"host=h password='s3cret\'tail1e' user=u",
    "key=value, escaped backslash": r"host=h password='s3cret\\' user=u",
    "key=value, escaped space": r"host=h password=s3cret\ tail1e user=u",
    "key=value, with @ : / #": "host=h password=s3cret@:/#tail1e",
    "key=value, key file": "host=h sslpassword=s3cret",
}

#: Invalid URLs, mostly with a typing error.
WRONG_WITH_PASSWORD = {
    "another database": "mysql://user:s3cret@host/db",
    "another database and its driver": "mysql+pymysql://user:s3cret@host/db",
    "typing error in the scheme": "postgre://user:s3cret@host/db",
    "no scheme": "user:s3cret@host/db",
    "no scheme, with port": "user:s3cret@host:5432/db",
    "one slash": "postgresql:/user:s3cret@host/db",
    "no slash": "postgresql:user:s3cret@host/db",
    "no colon": "postgresql//user:s3cret@host/db",
    "bare #": "mysql://user:s3cret#tail1e@host/db",
    "bare /": "mysql://user:s3cret/tail1e@host/db",
    "bad IPv6": "postgresql://user:s3cret@[::1/db",
    "bracket in the password": "postgresql://user:s3cret[tail1e@host/db",
    "key=value without a host": "password=s3cret",
    "key=value, open quote": "password='s3cret tail1e",
    "query": "mysql://host/db?password=s3cret",
}


def assert_no_password(text: str) -> None:
    assert "s3cret" not in text
    assert "tail1e" not in text


@pytest.mark.parametrize("name", ["DATABASE_URL", "LISTEN_DATABASE_URL"])
@pytest.mark.parametrize("address", WITH_PASSWORD.values(), ids=WITH_PASSWORD.keys())
def test_settings_do_not_disclose_passwords(name: str, address: str) -> None:
    settings = load({name: address})
    assert_no_password(repr(settings))
    assert_no_password(str(settings))
    assert_no_password(redact(address) or "")


def test_settings_do_not_disclose_the_secret_key() -> None:
    assert_no_password(repr(load({"SECRET_KEY": "s3cret"})))


@pytest.mark.parametrize("address", WRONG_WITH_PASSWORD.values(), ids=WRONG_WITH_PASSWORD.keys())
@pytest.mark.parametrize("place", ["environment", "file", "override"])
def test_errors_do_not_disclose_passwords(place: str, address: str) -> None:
    environment, overrides = {}, {}
    if place == "environment":
        environment = {"DATABASE_URL": address}
    elif place == "file":
        Path("local.cfg").write_text(f"SQLALCHEMY_DATABASE_URI = {address!r}", "utf-8")
    else:
        overrides = {"database_url": address}
    with pytest.raises(ConfigurationError) as caught:
        load(environment, overrides=overrides)
    assert_no_password(str(caught.value))
    # The traceback must not show the original error either.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert ("SQLALCHEMY_DATABASE_URI" if place == "file" else "DATABASE_URL") in caught.value.message


def test_syntax_error_in_the_file_does_not_disclose_passwords() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_file("SQLALCHEMY_DATABASE_URI = 'postgresql://user:s3cret@host/db\n")
    assert_no_password(str(caught.value))
    assert "line 1" in caught.value.message


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (None, None),
        ("postgresql://host:5432/db", "postgresql://host:5432/db"),
        ("postgresql://user@host/db", "postgresql://user@host/db"),
        ("host=h user=u dbname=db", "host=h user=u dbname=db"),
        ("postgresql://user:s3cret@host:5432/db?sslmode=require", "postgresql://user:***@host:5432/db?sslmode=require"),
        ("host=h password=s3cret user=u", "host=h password=*** user=u"),
        ("postgresql://host/db?password=s3cret&sslmode=require", "postgresql://host/db?password=***&sslmode=require"),
    ],
)
def test_redact_removes_only_the_password(address: str | None, shown: str | None) -> None:
    assert redact(address) == shown
