"""Loading settings from a file, and checking error messages."""

from pathlib import Path

from socketio_pg.core.config import Settings
from socketio_pg.core.loading import load


def load_file(text: str, environment: dict[str, str] | None = None, **overrides: object) -> Settings:
    Path("local.cfg").write_text(text, "utf-8")
    return load(environment or {}, overrides=overrides)


def assert_one_sentence(text: str) -> None:
    """Assert that ``text`` is one line and one sentence, as shown to the operator when the start fails."""
    assert "\n" not in text
    assert text.endswith(".")
    assert ". " not in text
