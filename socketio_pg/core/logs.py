"""Our log on standard error: one line an event, as ``key=value`` or as JSON. What is logged is the modules' matter.

What a caller gives as ``extra`` is a field of its own. Whatever is in a value, it cannot end its line or begin another
field.
"""

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any

#: What a record has by itself. Everything else is a field.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure_logging(level: str, form: str = "text") -> None:
    """Our loggers at ``level``, on standard error unless the program has set up logging itself.

    ``form``: ``text`` or ``json`` (LOG_FORMAT).
    """
    logger = logging.getLogger("socketio_pg")
    logger.setLevel(level)
    if not logger.handlers and not logging.getLogger().handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(formatter(form))
        logger.addHandler(handler)
        logger.propagate = False


def formatter(form: str) -> logging.Formatter:
    """The formatter of LOG_FORMAT."""
    return JsonFormatter() if form == "json" else TextFormatter()


class TextFormatter(logging.Formatter):
    """``time=… level=… logger=… message="…"``, and the fields; values in quotes are JSON strings."""

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{name}={_shown(value)}" for name, value in _fields(self, record).items())


class JsonFormatter(logging.Formatter):
    """An object with the same keys."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_fields(self, record), default=str)


def _fields(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, Any]:
    time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
    fields: dict[str, Any] = {
        "time": time.replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
    }
    fields |= {name: value for name, value in vars(record).items() if name not in _STANDARD and name not in fields}
    if record.exc_info:
        fields["traceback"] = formatter.formatException(record.exc_info)
    return fields


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if text and text.isascii() and text.isprintable() and not set(text) & set(' "=\\'):
        return text
    # Beyond ASCII there are characters that a terminal, or somebody's splitlines(), takes for the end of a line.
    return json.dumps(text, ensure_ascii=not text.isprintable())
