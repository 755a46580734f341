"""Settings from a file, and what the operator is told about wrong ones."""

from pathlib import Path

from socketio_pg.core.config import Settings, load


def load_file(text: str, environment: dict[str, str] | None = None, **overrides: object) -> Settings:
    Path("local.cfg").write_text(text, "utf-8")
    return load(environment or {}, overrides=overrides)


def assert_one_sentence(text: str) -> None:
    """One line, one full stop, at its end: it is what the operator sees when the start fails."""
    assert "\n" not in text
    assert text.endswith(".")
    assert ". " not in text
