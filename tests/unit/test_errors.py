"""The error classes: hierarchy, codes, wire form."""

import inspect
import re
import time

import pytest

import socketio_pg
from socketio_pg.core import errors
from socketio_pg.core.errors import DatabaseError, SocketIOPGError
from socketio_pg.core.problems import Problem
from socketio_pg.core.references import References

#: Class → (base class, wire code). Both are public: programs catch classes, clients check codes.
TREE = {
    "SocketIOPGError": ("Exception", "internal"),
    "ConfigurationError": ("SocketIOPGError", "internal"),
    "InvalidRequestError": ("SocketIOPGError", "invalid_request"),
    "InvalidChannelError": ("InvalidRequestError", "invalid_channel"),
    "PayloadTooLargeError": ("InvalidRequestError", "payload_too_large"),
    "LogNotInstalledError": ("InvalidRequestError", "log_not_installed"),
    "UntrustedSchemaError": ("LogNotInstalledError", "log_not_installed"),
    "UnauthorizedError": ("SocketIOPGError", "unauthorized"),
    "AuthenticationUnavailableError": ("SocketIOPGError", "authentication_unavailable"),
    "ForbiddenError": ("SocketIOPGError", "forbidden"),
    "RateLimitedError": ("SocketIOPGError", "rate_limited"),
    "TooManyRowsError": ("SocketIOPGError", "too_many_rows"),
    "TooManySubscriptionsError": ("SocketIOPGError", "too_many_subscriptions"),
    "FilterTooExpensiveError": ("SocketIOPGError", "filter_too_expensive"),
    "IdleTimeoutError": ("SocketIOPGError", "idle_timeout"),
    "EndedByServerError": ("SocketIOPGError", "ended_by_server"),
    "DatabaseError": ("SocketIOPGError", "internal"),
    "DatabaseRefusedError": ("DatabaseError", "database_unavailable"),
    "DatabaseUnavailableError": ("DatabaseError", "database_unavailable"),
    "DatabaseTimeoutError": ("DatabaseUnavailableError", "database_unavailable"),
    "ClusterKeyError": ("DatabaseUnavailableError", "database_unavailable"),
}


def classes() -> dict[str, type[SocketIOPGError]]:
    found = {}
    for name, value in vars(errors).items():
        if inspect.isclass(value):
            assert issubclass(value, SocketIOPGError)
            found[name] = value
    return found


def test_class_hierarchy_is_complete() -> None:
    found = {name: (error.__base__.__name__, error.code) for name, error in classes().items() if error.__base__}
    assert found == TREE


@pytest.mark.parametrize(("name", "code"), [(name, code) for name, (_, code) in TREE.items()])
def test_docstring_shows_the_class_hierarchy(name: str, code: str) -> None:
    lines = [line.split() for line in (errors.__doc__ or "").splitlines()]
    assert [name, code] in [line[-2:] for line in lines]


@pytest.mark.parametrize("name", [name for name in TREE if name != "UntrustedSchemaError"])
def test_error_has_message_code_and_channel(name: str) -> None:
    error = classes()[name]("went wrong", channel="foo")
    assert isinstance(error, SocketIOPGError)
    assert (str(error), error.message, error.channel) == ("went wrong", "went wrong", "foo")
    # to_wire() has no channel: only the event `error` has one, an acknowledgement does not need it.
    assert error.to_wire() == {"code": TREE[name][1], "message": "went wrong"}


def test_clients_get_a_reference_instead_of_the_detail(caplog: pytest.LogCaptureFixture) -> None:
    error = DatabaseError("the database refused this", detail="no pg_hba.conf entry for host 10.0.0.1")
    assert str(error) == "no pg_hba.conf entry for host 10.0.0.1"
    wire = error.to_wire()
    found = re.fullmatch(r"the database refused this \(reference ([0-9a-f]{8})\)", wire["message"])
    assert found
    assert f"reference {found[1]}: no pg_hba.conf entry for host 10.0.0.1" in caplog.text
    assert error.to_wire() == wire, "the same detail has the same reference"


def test_problem_has_a_text_for_the_operator_and_one_for_others() -> None:
    problem = Problem.of(DatabaseError("refused", detail="secret"), "not relaying: ", "; see the docs")
    assert problem == "not relaying: secret; see the docs"
    assert re.fullmatch(r"not relaying: refused \(reference \w{8}\); see the docs", problem.public)
    assert Problem.of(DatabaseError("refused"), "a: ").public == "a: refused"
    assert "secret" not in Problem.of(KeyError("secret")).public
    assert Problem("starting").public == "starting"


def test_references_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """Clients can cause errors with texts that they choose."""
    references, began = References(), time.monotonic()
    found = [references.of(f"detail {number}") for number in range(5000)]
    most = (time.monotonic() - began + 2) * (references.per_second + 1)
    assert len(set(found)) <= most
    assert len(caplog.records) <= most
    logged = " ".join(record.getMessage() for record in caplog.records)
    assert all(reference in logged for reference in found)


def test_recurring_detail_keeps_its_reference_and_is_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    """The first line of a failure that lasts for days may be gone from the log."""
    references = References()
    reference = references.of("detail")
    assert [references.of("detail") for _ in range(100)] == [reference] * 100
    assert len(caplog.records) == 1
    references.again = 0.0
    assert references.of("detail") == reference
    assert [record.getMessage() for record in caplog.records] == [f"reference {reference}: detail"] * 2


def test_error_has_no_channel_by_default() -> None:
    assert SocketIOPGError("went wrong").channel is None


def test_wire_codes_has_the_codes_of_all_classes() -> None:
    assert errors.wire_codes() == {code for _, code in TREE.values()}


def test_package_exports_public_errors() -> None:
    assert socketio_pg.PayloadTooLargeError is errors.PayloadTooLargeError
    assert socketio_pg.SocketIOPGError is errors.SocketIOPGError
