"""socketio_pg.logs: one line an event, whatever is in it."""

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.core.logs import PerValueLog, RateLimitedLog, RateLimitFilter, configure_logging, formatter
from tests.support.checker_run import failures

#: Line ends of terminals, str.splitlines(), JavaScript and XML.
ENDS = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
logger = logging.getLogger("socketio_pg.test_logs")
FIELD = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[^\s"]*)(?: |$)')


def record(message: str, *arguments: object, level: int = logging.WARNING, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("socketio_pg.test", level, __file__, 1, message, arguments, None)
    vars(made).update(fields)
    return made


def fields_of(line: str) -> dict[str, str]:
    """Parse a line of ``key=value`` fields."""
    found, position = {}, 0
    while position < len(line):
        match = FIELD.match(line, position)
        assert match is not None, line[position:]
        assert match[1] not in found
        found[match[1]] = json.loads(match[2]) if match[2].startswith('"') else match[2]
        position = match.end()
    return found


def test_text_format() -> None:
    line = formatter("text").format(record("a client %s", "left", connection="abc123", seconds=1.5, channel="foo bar"))
    time, _, rest = line.partition(" ")
    assert re.fullmatch(r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
    assert rest == (
        'level=warning logger=socketio_pg.test message="a client left" connection=abc123 seconds=1.5 channel="foo bar"'
    )


def test_checker_finds_our_tracebacks() -> None:
    """The soak test counts our tracebacks as failures of the server, but not harmless ones."""
    try:
        raise OSError(9, "Bad file descriptor")
    except OSError as error:
        harmless, ours = record("Socket error processing request."), record("the relay failed", connection="a")
        for made in (harmless, ours):
            made.exc_info = (type(error), error, error.__traceback__)
    log = "\n".join(map(formatter("text").format, (record("all is well"), harmless, ours)))
    assert failures(log) == ["the relay failed: OSError: [Errno 9] Bad file descriptor"]


def test_json_format() -> None:
    found = json.loads(formatter("json").format(record("a client left", connection="abc123", count=3)))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert found == {
        "level": "warning", "logger": "socketio_pg.test", "message": "a client left",
        "connection": "abc123", "count": 3,
    }  # fmt: skip


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("end", ENDS, ids=repr)
def test_values_cannot_end_a_line(form: str, end: str) -> None:
    forged = f"foo{end}time=2026-01-01T00:00:00.000Z level=critical logger=root message=forged"
    line = formatter(form).format(record("refused: %s", forged, channel=forged))
    assert len(line.splitlines()) == 1
    assert end not in line
    found = fields_of(line) if form == "text" else json.loads(line)
    assert (found["level"], found["message"], found["channel"]) == ("warning", f"refused: {forged}", forged)


@given(st.text(st.characters(codec=None), max_size=60), st.text(st.characters(codec=None), max_size=60))
def test_logged_values_can_be_parsed(message: str, value: str) -> None:
    for form in ("text", "json"):
        line = formatter(form).format(record("%s", message, value=value))
        assert line.isprintable()
        line.encode()  # lone surrogates are written as escapes
        found = fields_of(line) if form == "text" else json.loads(line)
        assert (found["message"], found["value"]) == (message, value)


@pytest.mark.parametrize("form", ["text", "json"])
def test_traceback_is_a_field(form: str) -> None:
    try:
        raise ValueError("no\nlevel=critical")
    except ValueError as error:
        made = record("it failed")
        made.exc_info = (type(error), error, error.__traceback__)
    line = formatter(form).format(made)
    assert len(line.splitlines()) == 1
    found = fields_of(line) if form == "text" else json.loads(line)
    assert found["traceback"].startswith("Traceback (most recent call last):\n")
    assert found["traceback"].endswith("ValueError: no\nlevel=critical")


@pytest.mark.parametrize("form", ["text", "json"])
def test_fields_cannot_replace_standard_fields(form: str) -> None:
    line = formatter(form).format(record("a", level=logging.INFO, logger="other", time="never"))
    found = fields_of(line) if form == "text" else json.loads(line)
    assert (found["logger"], found["level"]) == ("socketio_pg.test", "info")
    assert found["time"] != "never"


@pytest.fixture
def our_logger() -> Iterator[logging.Logger]:
    """Our logger without handlers, restored afterwards."""
    logger = logging.getLogger("socketio_pg")
    before = (logger.level, logger.handlers[:], logger.propagate)
    logger.handlers[:] = []
    yield logger
    logger.setLevel(before[0])
    logger.handlers[:], logger.propagate = before[1], before[2]


def test_logging_is_configured_once_on_standard_error(
    our_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own
    monkeypatch.setattr("sys.stderr", stream)
    configure_logging("INFO", "json")
    configure_logging("WARNING", "text")
    logging.getLogger("socketio_pg.some").warning("once")
    logging.getLogger("socketio_pg.some").info("below the level")
    [line] = stream.getvalue().splitlines()
    assert json.loads(line)["message"] == "once"


def test_existing_logging_configuration_is_kept(our_logger: logging.Logger) -> None:
    assert logging.getLogger().handlers, "pytest's own"
    configure_logging("INFO", "json")
    assert our_logger.handlers == []
    assert our_logger.propagate is True


# -- rate limits -------------------------------------------------------------------------------------------------------


def test_each_message_is_logged_once_per_interval(caplog: pytest.LogCaptureFixture) -> None:
    limited_log = RateLimitedLog(logger, seconds=3600)
    for number in range(1_000):
        limited_log(logging.WARNING, "client %d is odd", number)
        limited_log(logging.WARNING, "another sentence")
    assert [record.getMessage() for record in caplog.records] == ["client 0 is odd", "another sentence"]


def test_suppressed_messages_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    limited_log = RateLimitedLog(logger, seconds=3600)
    for number in range(3):
        limited_log(logging.WARNING, "client %d is odd", number)
    limited_log._seconds = 0
    limited_log(logging.WARNING, "client %d is odd", 3)
    limited_log(logging.WARNING, "client %d is odd", 4)
    assert [record.getMessage() for record in caplog.records] == [
        "client 0 is odd",
        "client 3 is odd (2 more suppressed)",
        "client 4 is odd",
    ]


def test_failure_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    limited_log = RateLimitedLog(logger)
    error = ValueError("no")
    try:
        raise error
    except ValueError:
        limited_log.failure("something failed")
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info
    assert record.exc_info[1] is error


def test_filter_limits_lines_of_another_logger(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    logger = logging.getLogger("anothers")
    logger.addFilter(RateLimitFilter("Invalid request"))
    for _ in range(3):
        logger.warning("Invalid request from %s", "somewhere")
        logger.warning("something else")
    clock[0] += 1
    logger.warning("Invalid request from 100%")
    logger.warning("Invalid request from nowhere")
    clock[0] += 2
    logger.warning("Invalid request from there")
    assert [record.getMessage() for record in caplog.records] == [
        "Invalid request from somewhere",
        *["something else"] * 3,
        "Invalid request from 100% (2 more suppressed)",
        "Invalid request from there (1 more suppressed)",
    ]


def test_each_value_is_logged_once_in_a_while_and_their_number_is_limited(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    log = PerValueLog(logger, seconds=60, values=3)

    def lines(*values: str) -> list[str]:
        caplog.clear()
        for value in values:
            log(value, logging.WARNING, "refused %.10s", value)
        return [record.getMessage() for record in caplog.records]

    assert lines("a", "b", "a", "c", "d", "e", "a") == ["refused a", "refused b", "refused c"]
    clock[0] += 59
    assert lines("a", "f") == []
    clock[0] += 1
    assert lines("a", "a", "g") == ["refused a (3 others suppressed)", "refused g"]
    clock[0] += 60
    # A hostile client neither fills the memory with long values, nor the log with different ends of one.
    assert lines(*("x" * 10_000 + str(number) for number in range(5))) == ["refused xxxxxxxxxx"]
    assert sum(map(len, log._written)) == PerValueLog.LENGTH
