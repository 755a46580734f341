"""socketio_pg.complaints: a log that clients cannot fill."""

import logging

import pytest

from socketio_pg.core.logs import Complaints, SeldomFilter

logger = logging.getLogger("socketio_pg.test_complaints")


def test_a_sentence_is_written_once_and_the_others_beside_it(caplog: pytest.LogCaptureFixture) -> None:
    complain = Complaints(logger, seconds=3600)
    for number in range(1_000):
        complain(logging.WARNING, "client %d is odd", number)
        complain(logging.WARNING, "another sentence")
    assert [record.getMessage() for record in caplog.records] == ["client 0 is odd", "another sentence"]


def test_what_was_not_written_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    complain = Complaints(logger, seconds=3600)
    for number in range(3):
        complain(logging.WARNING, "client %d is odd", number)
    complain._seconds = 0
    complain(logging.WARNING, "client %d is odd", 3)
    complain(logging.WARNING, "client %d is odd", 4)
    assert [record.getMessage() for record in caplog.records] == [
        "client 0 is odd",
        "client 3 is odd (2 more suppressed)",
        "client 4 is odd",
    ]


def test_a_failure_has_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    complain = Complaints(logger)
    error = ValueError("no")
    try:
        raise error
    except ValueError:
        complain.failure("something failed")
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info
    assert record.exc_info[1] is error


def test_lines_of_anothers_logger(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    logger = logging.getLogger("anothers")
    logger.addFilter(SeldomFilter("Invalid request"))
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
