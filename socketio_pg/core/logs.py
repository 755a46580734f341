"""Log output on standard error: one line per event, as ``key=value`` or JSON; and rate limits for repeated lines.

Entries of a caller's ``extra`` become fields. No value, whatever it contains, can end its line or start another field.
"""

import json
import logging
import sys
import time
from collections import OrderedDict
from datetime import datetime, timezone
from typing import Any

#: The standard attributes of a record. All others are fields.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure_logging(level: str, form: str = "text") -> None:
    """Log this package at ``level``, to standard error unless the program has set up logging itself.

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
    """Return the formatter for a value of LOG_FORMAT."""
    return JsonFormatter() if form == "json" else TextFormatter()


class TextFormatter(logging.Formatter):
    """Formats ``time=… level=… logger=… message="…"`` and the fields; values in quotes are JSON strings."""

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{name}={_shown(value)}" for name, value in _fields(self, record).items())


class JsonFormatter(logging.Formatter):
    """Formats a JSON object with the same keys."""

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
    # Some non-ASCII characters end a line for terminals and for str.splitlines().
    return json.dumps(text, ensure_ascii=not text.isprintable())


class RateLimitedLog:
    """Rate-limits log lines that clients can trigger: each sentence at most once in ``seconds``, the rest are counted.

    The sentence is the line before its arguments are filled in, so the program has a fixed number of them.
    """

    def __init__(self, logger: logging.Logger, seconds: float = 1.0) -> None:
        self._logger = logger
        self._seconds = seconds
        #: Sentence → time of its last line (monotonic), and number of lines suppressed since.
        self._written: dict[str, tuple[float, int]] = {}

    def __call__(
        self, level: int, sentence: str, *arguments: object, exc_info: bool | BaseException = False, **fields: object
    ) -> None:
        """Log ``sentence % arguments`` with ``fields``, or count it as suppressed.

        ``exc_info``: adds the traceback of the current exception, or of this one.
        """
        now = time.monotonic()
        last, suppressed = self._written.get(sentence, (-self._seconds, 0))
        if now < last + self._seconds:
            self._written[sentence] = (last, suppressed + 1)
            return
        self._written[sentence] = (now, 0)
        more = f" ({suppressed} more suppressed)" if suppressed else ""
        self._logger.log(level, sentence + "%s", *arguments, more, exc_info=exc_info, extra=fields)

    def failure(self, sentence: str, **fields: object) -> None:
        """Log the current exception as an error, with its traceback."""
        self(logging.ERROR, sentence, exc_info=True, **fields)


class PerValueLog:
    """Rate-limits log lines by a value that clients choose: each value at most once in ``seconds``.

    At most ``values`` different ones are logged in that time; further ones are counted.
    """

    #: Characters of a value that count: clients choose its length too.
    LENGTH = 200

    def __init__(self, logger: logging.Logger, seconds: float, values: int) -> None:
        self._logger = logger
        self._seconds = seconds
        self._most = values
        #: Value → time of its line (monotonic), the earliest first.
        self._written: OrderedDict[str, float] = OrderedDict()
        self._suppressed = 0

    def __call__(self, value: str, level: int, sentence: str, *arguments: object) -> None:
        """Log ``sentence % arguments``, unless ``value`` was logged recently."""
        now, value = time.monotonic(), value[: self.LENGTH]
        while self._written and next(iter(self._written.values())) <= now - self._seconds:
            self._written.popitem(last=False)
        if value in self._written:
            return
        if len(self._written) >= self._most:
            self._suppressed += 1
            return
        self._written[value] = now
        more = f" ({self._suppressed} others suppressed)" if self._suppressed else ""
        self._suppressed = 0
        self._logger.log(level, sentence + "%s", *arguments, more)


class RateLimitFilter(logging.Filter):
    """Rate-limits another library's logger: passes lines that begin with ``start`` once in ``seconds``."""

    def __init__(self, start: str, seconds: float = 1.0) -> None:
        super().__init__()
        self._start = start
        self._seconds = seconds
        self._last = -seconds
        self._suppressed = 0

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if not message.startswith(self._start):
            return True
        now = time.monotonic()
        if now < self._last + self._seconds:
            self._suppressed += 1
            return False
        if self._suppressed:
            record.msg, record.args = f"{message} ({self._suppressed} more suppressed)", ()
        self._last, self._suppressed = now, 0
        return True
