"""A log that clients cannot fill: what they bring about is written once a second at most, and the rest counted."""

import logging
import time


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
