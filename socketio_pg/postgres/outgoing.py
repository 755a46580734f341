"""Messages on their way to PostgreSQL, and the SQL that sends them. No I/O."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from socketio_pg.core.meta import META_CHANNEL, Meta

#: Milliseconds that a batch waits for a transaction that has published the same id: then that message waits alone.
ID_MILLISECONDS = 10


class Outgoing(NamedTuple):
    """JSON text for ``channel``, sent with NOTIFY or, if ``durable``, through the log; once for each ``id``.

    The last three are those of :class:`~socketio_pg.core.meta.Meta`.
    """

    channel: str
    payload_json: str
    durable: bool = False
    id: str | None = None
    sender: str | None = None
    traceparent: str | None = None
    exclude: str | None = None

    @property
    def meta(self) -> str | None:
        """The message's metadata as JSON text; None if it has none."""
        if self.sender is None and self.traceparent is None and self.exclude is None:
            return None
        return Meta(self.sender, self.traceparent, self.exclude).to_json()


class Receipt(NamedTuple):
    """The result of a committed message.

    ``number`` is its id in the outbox, or that of the first message with the same id, if it is a ``duplicate``. None
    for a NOTIFY without an id, and for a role that may not read ids.
    """

    number: int | None = None
    duplicate: bool = False


#: Name → the value of each message.
_Values: TypeAlias = dict[str, Sequence[object]]

#: The receipt of a message without a number.
NOTIFIED = Receipt()


class Statements(NamedTuple):
    """``sql`` begins a transaction and sends messages in it, with ``parameters``.

    ``plain``: all of them are NOTIFYs without an id, which need no schema. Otherwise the last result has a row for each
    of the others, in order. Its last column is the message's number, negative for a duplicate, if numbers were wanted
    or there are ids. ``has_ids``: the transaction has a lock timeout of its own.
    """

    sql: str
    parameters: list[Sequence[object]]
    plain: bool
    has_ids: bool


def statements(
    messages: Sequence[Outgoing],
    encode: Callable[[str], str] | None,
    companion: Callable[[str, str, str], str],
    *,
    numbers: bool,
) -> Statements:
    """Return the statements that send ``messages``.

    ``encode`` encodes texts for the connection, if that is necessary. ``companion(channel, payload, meta)`` returns the
    text to send before a notification that has metadata (`companions`). ``numbers``: return the messages' ids in the
    outbox, which the role must be allowed to read.
    """
    # In one round trip, but without the COMMIT, so that a failure before it is known to have sent nothing. unnest()
    # returns rows in the order of its arrays; with several, it is always the one of pg_catalog.
    sql: list[str] = ["BEGIN"]
    parameters: list[Sequence[object]] = []
    plain = [message for message in messages if not message.durable and message.id is None]
    if plain:
        sql.append(
            "SELECT pg_catalog.pg_notify(channel, payload)"
            " FROM unnest(%s::pg_catalog.text[], %s::pg_catalog.text[]) AS message(channel, payload)"
        )
        notifications: list[tuple[str, str]] = []
        for one in plain:
            meta = one.meta
            if meta is not None:
                notifications.append((META_CHANNEL, companion(one.channel, one.payload_json, meta)))
            notifications.append((one.channel, one.payload_json))
        parameters += _columns(notifications, encode)
    if len(plain) == len(messages):
        return Statements(";".join(sql), parameters, True, False)
    others = messages if not plain else [one for one in messages if one.durable or one.id is not None]
    has_ids = any(one.id is not None for one in others)
    if has_ids:
        sql.append(f"SET LOCAL lock_timeout = {ID_MILLISECONDS}")
    call, columns = _call(others, companion, has_ids=has_ids, numbers=numbers)
    arrays = ["%s::pg_catalog.bool[]" if name == "durable" else "%s::pg_catalog.text[]" for name in columns]
    arrays += ["%s::pg_catalog.text[]"] * 2
    sql.append(
        f"SELECT socketio_pg.{call} FROM unnest({', '.join(arrays)}) AS m({', '.join([*columns, 'channel, payload'])})"
    )
    for column in columns.values():
        parameters.append([encode(one) if encode is not None and isinstance(one, str) else one for one in column])
    parameters += _columns([(one.channel, one.payload_json) for one in others], encode)
    return Statements(";".join(sql), parameters, False, has_ids)


def _call(
    messages: Sequence[Outgoing], companion: Callable[[str, str, str], str], *, has_ids: bool, numbers: bool
) -> tuple[str, _Values]:
    """Return the call that publishes each of ``messages``, and the columns that it needs beside channel and payload.

    It is the one that the most roles may call.
    """
    metas = [one.meta for one in messages]
    # currval() after the call: PostgreSQL evaluates the columns of a row in order.
    number = ", pg_catalog.currval('socketio_pg.outbox_id_seq')" if numbers else ""
    if not has_ids and not any(metas):
        return f"publish(channel, payload::pg_catalog.jsonb){number}", {}
    which: _Values = {"durable": [one.durable for one in messages], "id": [one.id for one in messages]}
    if not any(metas):
        return "publish_as(channel, payload, durable, id)", which
    if all(one.durable and one.sender is None for one in messages if one.meta is not None):
        chosen: _Values = {
            "exclude": [one.exclude for one in messages],
            "traceparent": [one.traceparent for one in messages],
        }
        return "publish_as(channel, payload, durable, id, exclude, traceparent)", which | chosen
    if not has_ids:
        call = f"add_with_meta(channel, payload::pg_catalog.jsonb, meta::pg_catalog.jsonb){number}"
        return call, {"meta": metas}
    companions = [
        None if meta is None or one.durable else companion(one.channel, one.payload_json, meta)
        for one, meta in zip(messages, metas, strict=True)
    ]
    call = "publish_with_meta(channel, payload, durable, id, meta::pg_catalog.jsonb, companion)"
    return call, which | {"meta": metas, "companion": companions}


def _columns(pairs: Sequence[tuple[str, str]], encode: Callable[[str], str] | None) -> tuple[list[str], list[str]]:
    channels = [channel for channel, _ in pairs]
    payloads = [payload for _, payload in pairs]
    return (channels, payloads) if encode is None else (list(map(encode, channels)), list(map(encode, payloads)))
