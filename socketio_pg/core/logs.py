"""Our log on standard error: one line an event, as ``key=value`` or as JSON. What is logged is the modules' matter.

What a caller gives as ``extra`` is a field of its own. Whatever is in a value, it cannot end its line or begin another
field.
"""

import json
import logging
import sys
import time
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


class Complaints:
    """Lines of ``logger``; each sentence at most once in ``seconds``.

    The sentence is the line without its arguments, so there are as many as the program has.
    """

    def __init__(self, logger: logging.Logger, seconds: float = 1.0) -> None:
        self._logger = logger
        self._seconds = seconds
        #: Sentence → when it was written last (monotonic), and how many were not since.
        self._written: dict[str, tuple[float, int]] = {}

    def __call__(self, level: int, sentence: str, *arguments: object, exc_info: bool = False, **fields: object) -> None:
        """Log ``sentence % arguments`` with ``fields``, or count it.

        ``exc_info``: with the traceback of what is being handled.
        """
        now = time.monotonic()
        last, silent = self._written.get(sentence, (-self._seconds, 0))
        if now < last + self._seconds:
            self._written[sentence] = (last, silent + 1)
            return
        self._written[sentence] = (now, 0)
        more = f" ({silent} more since the last time)" if silent else ""
        self._logger.log(level, sentence + "%s", *arguments, more, exc_info=exc_info, extra=fields)

    def failure(self, sentence: str, **fields: object) -> None:
        """What is being handled is a fault: log it with its traceback."""
        self(logging.ERROR, sentence, exc_info=True, **fields)


class SeldomFilter(logging.Filter):
    """The same for another's logger: lets lines that begin with ``start`` pass once in ``seconds``."""

    def __init__(self, start: str, seconds: float = 1.0) -> None:
        super().__init__()
        self._start = start
        self._seconds = seconds
        self._last = -seconds
        self._silent = 0

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if not message.startswith(self._start):
            return True
        now = time.monotonic()
        if now < self._last + self._seconds:
            self._silent += 1
            return False
        if self._silent:
            record.msg, record.args = f"{message} ({self._silent} more since the last time)", ()
        self._last, self._silent = now, 0
        return True
