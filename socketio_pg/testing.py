"""For the tests of applications: what a test has published.

A pytest plugin: ``pytest_plugins = ["socketio_pg.testing"]``. Its fixture :func:`published` sees the messages of the
log inside the test's own transaction, which is rolled back at the end. Messages of NOTIFY exist only after a commit:
:class:`Listening` waits for them. docs/testing.md describes both.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import pytest
from sqlalchemy import NullPool, create_engine
from sqlalchemy.engine import Engine

from socketio_pg.client import fetch
from socketio_pg.consumer.connections import Session, Waker
from socketio_pg.core.channels import quote_identifier, validate_channel
from socketio_pg.core.messages import dumps_strict, loads
from socketio_pg.postgres.embedded import EmbeddedPostgres
from socketio_pg.pubsub.filters import parse_filter

__all__ = ["Listening", "Published", "PublishedMessage"]

#: Conditions on a payload: a filter as in ``subscribe`` (docs/protocol.md), or a function that tells if it matches.
Matching: TypeAlias = Mapping[str, Any] | Callable[[Any], object]

#: Lines of messages in a failure.
_MAX_SHOWN = 20

_NEWEST = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM socketio_pg.outbox_id_seq"
# A relay may have moved messages that were committed. Both have the same ids.
_MESSAGES = """
SELECT channel, payload::pg_catalog.text, meta OPERATOR(pg_catalog.->>) 'exclude',
    meta OPERATOR(pg_catalog.->>) 'traceparent' FROM (
    SELECT id, channel, payload, meta FROM socketio_pg.outbox WHERE id > {newest}
    UNION ALL SELECT id, channel, payload, meta FROM socketio_pg.log WHERE id > {newest}
) AS published WHERE channel NOT LIKE 'socketio\\_pg%' ORDER BY id
"""


class _Published(NamedTuple):
    channel: str
    payload: Any


class PublishedMessage(_Published):
    """A message that was published: a pair of channel and payload."""

    #: Those of its publisher; None for NOTIFY.
    exclude: str | None = None
    traceparent: str | None = None


class _Any:
    def __repr__(self) -> str:
        return "any payload"


_ANY = _Any()


class Assertions(ABC):
    """Assertions about :attr:`all`, the messages that were published."""

    @property
    @abstractmethod
    def all(self) -> Sequence[PublishedMessage]:
        """All messages so far, in order."""

    def payloads(self, channel: str) -> list[Any]:
        """Return the payloads of ``channel``, in order."""
        return [message.payload for message in self.all if message.channel == channel]

    def assert_published(
        self, channel: str, payload: Any = _ANY, *, matching: Matching | None = None, times: int | None = None
    ) -> Any:
        """Assert that a message was published on ``channel``, and return the payload of the first one.

        ``payload``: with this payload. ``matching``: with a payload that matches. ``times``: exactly so often.
        """
        __tracebackhide__ = True
        validate_channel(channel)
        matches = _matcher(payload, matching)
        found = self._wait(channel, matches, times)
        if (not found) if times is None else len(found) != times:
            wanted = _wanted(payload, matching)
            often = "" if times is None else f" {times} times, but {len(found)} times"
            pytest.fail(f"not published on {channel!r}{often}: {wanted}\n{self._shown(channel)}", pytrace=False)
        return found[0] if found else None

    def assert_nothing_published(self, channel: str | None = None) -> None:
        """Assert that no message was published, on ``channel`` or at all."""
        __tracebackhide__ = True
        found = [message for message in self.all if channel in (None, message.channel)]
        if found:
            pytest.fail(f"{len(found)} messages were published\n{_lines(found)}", pytrace=False)

    def _wait(self, channel: str, matches: Callable[[Any], object], times: int | None) -> list[Any]:
        """Return the matching payloads."""
        return [payload for payload in self.payloads(channel) if matches(payload)]

    def _shown(self, channel: str) -> str:
        messages = self.all
        there = [message for message in messages if message.channel == channel]
        if there:
            return f"published on it:\n{_lines(there)}"
        if messages:
            return f"nothing was published on it, but:\n{_lines(messages)}"
        return "nothing was published at all"


class Published(Assertions):
    """The messages of the log that were published since it was made, as ``connection`` sees them.

    ``connection`` is one of psycopg2, psycopg 3 or SQLAlchemy, or an SQLAlchemy session, which is flushed before each
    look. It sees what it has published itself, without a commit: by functions, ``Client``, ``@publishes`` and watches;
    and what others have committed.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        [(newest,)] = fetch(connection, _NEWEST)
        self._newest = int(newest)

    @property
    def all(self) -> Sequence[PublishedMessage]:
        if hasattr(self._connection, "flush"):
            self._connection.flush()
        rows = fetch(self._connection, _MESSAGES.format(newest=self._newest))
        found = []
        for channel, text, exclude, traceparent in rows:
            message = PublishedMessage(channel, loads(text))
            message.exclude, message.traceparent = exclude, traceparent
            found.append(message)
        return found


class Listening(Assertions):
    """The messages of NOTIFY on ``channels`` that were committed since it was entered, by any session.

    Use it with ``with``. ``database`` is an address or an SQLAlchemy engine. Assertions wait up to ``timeout`` seconds.
    """

    def __init__(self, database: str | Engine, *channels: str, timeout: float = 5.0) -> None:
        self._engine = database if isinstance(database, Engine) else create_engine(database, poolclass=NullPool)
        self._channels = [validate_channel(channel) for channel in channels]
        self._timeout = timeout
        self._waker = Waker()
        self._session: Session | None = None
        self._all: list[PublishedMessage] = []

    def __enter__(self) -> "Listening":
        session = self._session = Session(self._engine, self._waker, listen=False)
        for channel in self._channels:
            session.query(f"LISTEN {quote_identifier(channel)}")
        session.commit()
        return self

    def __exit__(self, *_: object) -> None:
        if self._session is not None:
            self._session.close()
        self._waker.close()

    @property
    def all(self) -> Sequence[PublishedMessage]:
        self._take(0.0)
        return list(self._all)

    def _take(self, seconds: float) -> None:
        assert self._session is not None, "use it with `with`"
        for channel, text in self._session.notifications(seconds):
            self._all.append(PublishedMessage(channel, _as_payload(text)))

    def _wait(self, channel: str, matches: Callable[[Any], object], times: int | None) -> list[Any]:
        deadline = time.monotonic() + self._timeout
        while True:
            found = super()._wait(channel, matches, times)
            left = deadline - time.monotonic()
            if len(found) >= (times or 1) or left <= 0:
                return found
            self._take(left)


def _as_payload(text: str) -> Any:
    """Return the payload as subscribers get it: text that is not JSON becomes a string."""
    try:
        return loads(text)
    except ValueError:
        return text


def _matcher(payload: Any, matching: Matching | None) -> Callable[[Any], object]:
    if payload is not _ANY and matching is not None:
        raise TypeError("payload and matching do not go together")
    if matching is None:
        return lambda found: payload is _ANY or found == payload
    if callable(matching):
        return matching
    conditions = parse_filter(dict(matching))
    return lambda found: conditions is None or conditions.matches(dumps_strict(found))


def _wanted(payload: Any, matching: Matching | None) -> str:
    if matching is None:
        return repr(payload)
    name = getattr(matching, "__name__", repr(matching))
    return f"a payload that matches {name if callable(matching) else matching}"


def _lines(messages: Sequence[PublishedMessage]) -> str:
    shown = [f"  {channel!r}: {json.dumps(payload, ensure_ascii=False)[:500]}" for channel, payload in messages]
    more = [f"  and {len(shown) - _MAX_SHOWN} more"] if len(shown) > _MAX_SHOWN else []
    return "\n".join(shown[:_MAX_SHOWN] + more)


@pytest.fixture(scope="session")
def socketio_pg_url() -> Iterator[str]:
    """The address of a database with the log: by default an embedded PostgreSQL (the extra ``embedded``)."""
    with tempfile.TemporaryDirectory(prefix="socketio_pg-") as folder:
        server = EmbeddedPostgres(folder)
        url = server.start()
        try:
            # In a process of its own, because it uses a green-thread library.
            # The name that precedes all others: the folder's local.cfg may name the application's own database.
            environment = os.environ | {"SOCKETIO_PG_DATABASE_URL": url}
            command = [sys.executable, "-m", "socketio_pg", "init"]
            subprocess.run(command, env=environment, check=True, capture_output=True)
            yield url
        finally:
            server.stop("immediate")


@pytest.fixture
def socketio_pg_connection(socketio_pg_url: str) -> Iterator[Any]:
    """The connection on which the test publishes: by default a new one, which is rolled back at the end.

    Override it to return the application's own session or connection.
    """
    with create_engine(socketio_pg_url, poolclass=NullPool).connect() as connection:
        yield connection
        connection.rollback()


@pytest.fixture
def published(socketio_pg_connection: Any) -> Published:
    """The messages of the log that the test publishes on :func:`socketio_pg_connection`."""
    return Published(socketio_pg_connection)
