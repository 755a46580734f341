"""``@publishes`` on a mapped class: publishes its inserts, updates and deletes at flush, in the same transaction.

Needs SQLAlchemy and PostgreSQL, neither Flask nor green threads. This module records each write while SQLAlchemy still
has the old values; ``row_images`` builds the messages.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sqlalchemy import Column, Table, event, inspect, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapper, Session, UOWTransaction, class_mapper, object_session, scoped_session
from sqlalchemy.orm.attributes import get_history
from sqlalchemy.orm.base import PASSIVE_NO_INITIALIZE
from sqlalchemy.orm.exc import UnmappedClassError

from socketio_pg.core.errors import ConfigurationError, LogNotInstalledError
from socketio_pg.core.log_choice import LOG_CHOICE, database_key
from socketio_pg.core.meta import validate_exclude, validate_traceparent
from socketio_pg.orm.reading import read
from socketio_pg.orm.row_images import Change, Operation, Outgoing, Rows, Template, parse_template, placeholders

#: Limits for one query: the number of changes, and the number of values, of which psycopg 3 accepts 65,535.
BATCH = 500
BATCH_VALUES = 30_000

#: The key in Session.info of the writes of the current flush.
_WRITTEN = "socketio_pg.written"

# Qualified: it runs with the application's search_path. With several arguments unnest() is always that of pg_catalog.
_NOTIFY = text(
    "SELECT pg_catalog.pg_notify(channel, payload)"
    " FROM unnest(CAST(:channels AS pg_catalog.text[]), CAST(:payloads AS pg_catalog.text[]))"
    " WITH ORDINALITY AS message(channel, payload, number) ORDER BY number"
)
# publish() raises an error for a payload over MAX_PAYLOAD, which is part of its source: a function that returned the
# limit would be missing until the schema is upgraded. As jsonb a text has at most twice as many bytes, for spaces.
_PUBLISH_SQL = """
    SELECT socketio_pg.publish(channel, CAST(
        CASE WHEN pg_catalog.octet_length(payload) OPERATOR(pg_catalog.>) (most OPERATOR(pg_catalog./) 2)
            AND pg_catalog.octet_length(CAST(CAST(payload AS pg_catalog.jsonb) AS pg_catalog.text))
                OPERATOR(pg_catalog.>) most
        THEN short ELSE payload END AS pg_catalog.jsonb){more})
    FROM unnest(CAST(:channels AS pg_catalog.text[]), CAST(:payloads AS pg_catalog.text[]),
        CAST(:shorts AS pg_catalog.text[])) WITH ORDINALITY AS message(channel, payload, short, number)
    LEFT JOIN (
        SELECT CAST(pg_catalog.substring(prosrc, 'bytes > ([0-9]+)') AS pg_catalog.int4) AS most
        FROM pg_catalog.pg_proc
        WHERE oid OPERATOR(pg_catalog.=)
            CAST('socketio_pg.publish(pg_catalog.text, pg_catalog.jsonb)' AS pg_catalog.regprocedure)
    ) AS limits ON true ORDER BY number
"""
_PUBLISH = text(_PUBLISH_SQL.format(more=""))
_PUBLISH_WITH_META = text(
    _PUBLISH_SQL.format(
        more=", true, exclude => CAST(:exclude AS pg_catalog.text),"
        " traceparent => CAST(:traceparent AS pg_catalog.text)"
    )
)
#: The key in Session.info of the arguments of :func:`publishing`.
_META = "socketio_pg.meta"

_Class = TypeVar("_Class", bound=type[Any])


def publishes(
    channel: str, *, columns: Iterable[str] | None = None, exclude: Iterable[str] = (), durable: bool | None = None
) -> Callable[[_Class], _Class]:
    """Class decorator: publishes rows of the class and its subclasses when they are flushed.

    ``channel`` may have placeholders: ``"orders:{customer_id}"`` chooses the channel by row. A row with NULL in a
    placeholder has no channel and is not published. ``columns``: the columns in messages (default: all mapped columns);
    ``exclude``: columns left out of messages. All three take names of attributes or columns. ``durable``: publish
    through the log (True, ``socketio_pg.publish()``) or with NOTIFY (False). By default it is the log if the database
    has one that is trusted and that the role may use, as for :class:`~socketio_pg.client.Client`. A class may have
    several of these decorators.

    A message is ``{"op", "schema", "table", "pk", "new", "old", "changed"}``: see docs/sqlalchemy.md.

    Raises :class:`ConfigurationError` for names that the class does not have: from the decorator or, if the class is
    mapped later, when its mapper is configured. A flush raises :class:`LogNotInstalledError` and the driver's errors,
    and is rolled back; it never fails because of a value that a message cannot express.
    """
    template = parse_template(channel)
    included = None if columns is None else _names("columns", columns)
    excluded = _names("exclude", exclude)

    def decorate(cls: _Class) -> _Class:
        hook = _Hook(cls, template, included, excluded, durable)
        with suppress(UnmappedClassError):  # it may be mapped later
            hook.rows(class_mapper(cls, configure=False))
        # With `propagate` the listeners also apply to subclasses, and to a class that is mapped later.
        event.listen(cls, "mapper_configured", hook.configured, propagate=True)
        event.listen(cls, "before_insert", hook.inserting, propagate=True)
        event.listen(cls, "before_update", hook.updating, propagate=True)
        event.listen(cls, "before_delete", hook.deleting, propagate=True)
        return cls

    return decorate


@contextmanager
def publishing(
    session: Session | scoped_session[Any], *, exclude: str | None = None, traceparent: str | None = None
) -> Iterator[None]:
    """Give the messages about changes in the body of ``with`` metadata: docs/identity.md describes it.

    The client with the Socket.IO id ``exclude`` does not get them; ``traceparent``, that of W3C Trace Context, arrives
    with them. Only messages of the log have it. Flushes the session before, and at the end of the body.

    Raises :class:`InvalidRequestError` for invalid arguments.
    """
    meta = {
        "exclude": None if exclude is None else validate_exclude(exclude),
        "traceparent": None if traceparent is None else validate_traceparent(traceparent),
    }
    session.flush()
    before = session.info.get(_META)
    session.info[_META] = meta
    try:
        yield
        session.flush()
    finally:
        session.info[_META] = before


@dataclass(slots=True)
class _Written:
    """One object's write in a flush: ``old`` values that the session had loaded, and ``modified`` attributes so far."""

    rows: Rows
    operation: Operation
    target: object
    connection: Connection
    old: dict[str, Any]
    modified: frozenset[str] = frozenset()


class _Hook:
    """One ``@publishes`` of one class: records the mapper's writes."""

    def __init__(
        self,
        cls: type[Any],
        template: Template,
        columns: Sequence[str] | None,
        exclude: Sequence[str],
        durable: bool | None,
    ) -> None:
        self._class = cls
        self._template = template
        self._columns = columns
        self._exclude = exclude
        self._durable = durable
        self._rows: dict[Mapper[Any], Rows] = {}

    def rows(self, mapper: Mapper[Any]) -> Rows:
        """Return the description of the mapper's rows: the part that belongs to the decorated class."""
        while not mapper.concrete and mapper.inherits is not None and issubclass(mapper.inherits.class_, self._class):
            mapper = mapper.inherits
        if mapper not in self._rows:
            self._rows[mapper] = self._describe(mapper)
        return self._rows[mapper]

    def configured(self, mapper: Mapper[Any], _: type[Any]) -> None:
        self.rows(mapper)

    def inserting(self, mapper: Mapper[Any], connection: Connection, target: object) -> None:
        session = object_session(target)
        assert session is not None
        # A row deleted and added again in one flush: SQLAlchemy sends an UPDATE, with no event for the deleted object.
        before = session.identity_map.get(mapper.identity_key_from_instance(target))
        if before is not None and before is not target:
            self.deleting(inspect(before).mapper, connection, before)
        _record(session, _Written(self.rows(mapper), "INSERT", target, connection, {}))

    def updating(self, mapper: Mapper[Any], connection: Connection, target: object) -> None:
        rows = self.rows(mapper)
        _load(target, [key for key in placeholders(rows.template) if key in rows.volatile])
        _record(object_session(target), _Written(rows, "UPDATE", target, connection, _loaded(rows, target),
                                               _modified(rows, target)))  # fmt: skip

    def deleting(self, mapper: Mapper[Any], connection: Connection, target: object) -> None:
        rows = self.rows(mapper)
        _load(target, placeholders(rows.template))
        _record(object_session(target), _Written(rows, "DELETE", target, connection, _loaded(rows, target)))

    def _describe(self, mapper: Mapper[Any]) -> Rows:
        title = f"@publishes on {mapper.class_.__name__}"
        # Not mapper.column_attrs: it would configure all mappers, and classes they refer to may not be defined yet.
        columns = {key: column for key, column in mapper.columns.items() if isinstance(column, Column)}
        if not isinstance(mapper.local_table, Table):
            raise ConfigurationError(f"{title}: the class is not mapped to a table")

        def attribute(name: str) -> str:
            keys = [key for key, column in columns.items() if name in (key, column.name)]
            if not keys:
                raise ConfigurationError(f"{title}: the class has no column {name!r}")
            if len(keys) > 1:
                raise ConfigurationError(f"{title}: {name!r} is ambiguous: it matches the attributes {', '.join(keys)}")
            return keys[0]

        included = list(columns) if self._columns is None else [attribute(name) for name in self._columns]
        excluded = {attribute(name) for name in self._exclude}
        visible = [key for key in columns if key in included and key not in excluded]
        names = [columns[key].name for key in visible]
        for name in names:
            if names.count(name) > 1:
                raise ConfigurationError(f"{title}: the class has several columns {name!r}; exclude all but one")
        template = [(attribute(part[0]),) if isinstance(part, tuple) else part for part in self._template]
        key = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
        rows = Rows(
            title=title,
            table=mapper.local_table,
            source=mapper.persist_selectable,
            columns={name: columns[name] for name in columns if name in {*visible, *key, *placeholders(template)}},
            key=key,
            visible=visible,
            mapped=list(columns),
            template=template,
            volatile=frozenset(
                name for name, column in columns.items()
                if column.onupdate is not None or column.server_onupdate is not None or column is mapper.version_id_col
            ),
            durable=self._durable,
        )  # fmt: skip
        for name in placeholders(rows.template):
            # The old channel must be known even if the attribute had not been loaded.
            event.listen(getattr(mapper.class_, name), "set", _load_before_set, active_history=True, propagate=True)
        return rows


def _load_before_set(target: object, value: object, old: object, initiator: object) -> None:
    """Do nothing: a listener with ``active_history`` makes SQLAlchemy load the attribute before it is set."""


def _load(target: object, keys: Iterable[str]) -> None:
    for key in keys:
        getattr(target, key)


def _modified(rows: Rows, target: object) -> frozenset[str]:
    return frozenset(key for key in rows.mapped if get_history(target, key, PASSIVE_NO_INITIALIZE).has_changes())


def _loaded(rows: Rows, target: object) -> dict[str, Any]:
    """Return the values that the session had loaded of the row, before any modification."""
    identity = inspect(target, raiseerr=True).identity
    known: dict[str, Any] = dict(zip(rows.key, identity, strict=True)) if identity else {}
    for key in rows.columns:
        history = get_history(target, key, PASSIVE_NO_INITIALIZE)
        for value in history.deleted or history.unchanged or ():
            known[key] = value
    return {key: known[key] for key in rows.columns if key in known}


def _record(session: Session | None, written: _Written) -> None:
    assert session is not None  # it is being flushed
    session.info.setdefault(_WRITTEN, []).append(written)


def _change(written: _Written) -> Change | None:
    """Return the change after its SQL has run, or None when nothing was modified."""
    rows, target = written.rows, written.target
    if written.operation == "DELETE":
        return Change(rows, "DELETE", [written.old[key] for key in rows.key], written.old)
    state = inspect(target, raiseerr=True)
    now = state.dict
    known = {key: now[key] for key in placeholders(rows.template) if key in now}
    if written.operation == "INSERT":
        return Change(rows, "INSERT", [now[key] for key in rows.key], now=known)
    # Checked a second time: `post_update` sets references to other rows after those rows are written.
    modified = written.modified | _modified(rows, target)
    candidates = [key for key in rows.columns if key in modified | rows.volatile]
    if not modified or not candidates:
        return None
    key = [now.get(name, value) for name, value in zip(rows.key, state.identity, strict=True)]
    old = {name: value for name, value in written.old.items() if name in candidates}
    return Change(rows, "UPDATE", key, old, candidates, known)


@event.listens_for(Session, "before_flush")
def _begin(session: Session, context: UOWTransaction, instances: object) -> None:
    session.info.pop(_WRITTEN, None)  # left over from a failed flush


@event.listens_for(Session, "after_flush")
def _publish(session: Session, context: UOWTransaction) -> None:
    by_connection: dict[Connection, list[Change]] = {}
    for written in session.info.pop(_WRITTEN, ()):
        change = _change(written)
        if change is not None:
            by_connection.setdefault(written.connection, []).append(change)
    for connection, changes in by_connection.items():
        if connection.dialect.name != "postgresql":
            raise ConfigurationError(f"{changes[0].rows.title}: needs PostgreSQL, not {connection.dialect.name}")
        for batch in _batches(_with_tier(connection, changes)):
            _send(connection, read(connection, batch), session.info.get(_META))


def _with_tier(connection: Connection, changes: Sequence[Change]) -> Sequence[Change]:
    """Return the changes with the choice between the log and NOTIFY that is right on ``connection``."""
    if all(change.rows.durable is not None for change in changes):
        return changes
    key = database_key(connection.connection.driver_connection)
    has_log = LOG_CHOICE.has_log(key, None, lambda query: connection.execute(text(query)).all())
    return [
        change
        if change.rows.durable is not None
        else replace(change, rows=change.rows.logged if has_log else change.rows.notified)
        for change in changes
    ]


def _batches(changes: Iterable[Change]) -> Iterator[list[Change]]:
    batch: list[Change] = []
    size = 0
    for change in changes:
        values = 1 + len(change.key) + len(change.old)
        if batch and (len(batch) == BATCH or size + values > BATCH_VALUES):
            yield batch
            batch, size = [], 0
        batch.append(change)
        size += values
    if batch:
        yield batch


def _send(connection: Connection, messages: Sequence[Outgoing], meta: dict[str, str | None] | None) -> None:
    for statement, durable in ((_PUBLISH_WITH_META if meta else _PUBLISH, True), (_NOTIFY, False)):
        chosen = [message for message in messages if message.durable == durable]
        if not chosen:
            continue
        values: dict[str, Any] = {
            "channels": [message.channel for message in chosen],
            "payloads": [message.payload_json for message in chosen],
        }
        if durable:
            values["shorts"] = [message.short_json for message in chosen]
            values |= meta or {}
        try:
            connection.execute(statement, values)
        except DBAPIError as error:
            LOG_CHOICE.forget()  # the log may have been removed
            sqlstate = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
            # The schema or the function does not exist.
            if sqlstate in ("3F000", "42883"):
                raise LogNotInstalledError(
                    "the database has no schema socketio_pg: run 'socketio-pg init', or use durable=False"
                ) from error
            raise


def _names(option: str, names: Iterable[str]) -> list[str]:
    # A string would be read as a list of its letters.
    if isinstance(names, str):
        raise ConfigurationError(f"@publishes({option}={names!r}): must be a list of names, not a string")
    return list(names)
