"""Messages on their way to PostgreSQL, and the SQL that sends them. No I/O."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

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
    metas = [one.meta for one in others]
    parameters += _columns([(one.channel, one.payload_json) for one in others], encode)
    if has_ids:
        sql.append(f"SET LOCAL lock_timeout = {ID_MILLISECONDS}")
    texts: list[Sequence[str | None]] = []
    if any(metas) and not any(one.sender is not None or not one.durable for one in others if one.meta is not None):
        # Roles that may publish may call this.
        call = "publish_as(channel, payload, durable, id, exclude, traceparent)"
        names = "id, exclude, traceparent"
        texts = [[one.id for one in others], [one.exclude for one in others], [one.traceparent for one in others]]
    elif any(metas):
        companions = [
            None if meta is None or one.durable else companion(one.channel, one.payload_json, meta)
            for one, meta in zip(others, metas, strict=True)
        ]
        call = "publish_with_meta(channel, payload, durable, id, meta::pg_catalog.jsonb, companion)"
        names = "id, meta, companion"
        texts = [[one.id for one in others], metas, companions]
    elif has_ids:
        call, names = "publish_as(channel, payload, durable, id)", "id"
        texts = [[one.id for one in others]]
    else:
        # currval() after publish(): PostgreSQL evaluates the columns of a row in order.
        number = ", pg_catalog.currval('socketio_pg.outbox_id_seq')" if numbers else ""
        sql.append(
            f"SELECT socketio_pg.publish(channel, payload::pg_catalog.jsonb){number}"
            " FROM unnest(%s::pg_catalog.text[], %s::pg_catalog.text[]) AS message(channel, payload)"
        )
        return Statements(";".join(sql), parameters, False, False)
    types = ", ".join(["%s::pg_catalog.bool[]"] + ["%s::pg_catalog.text[]"] * len(texts))
    sql.append(
        f"SELECT socketio_pg.{call} FROM unnest(%s::pg_catalog.text[], %s::pg_catalog.text[], {types})"
        f" AS message(channel, payload, durable, {names})"
    )
    parameters.append([one.durable for one in others])
    parameters += [[text if text is None or encode is None else encode(text) for text in column] for column in texts]
    return Statements(";".join(sql), parameters, False, has_ids)


def _columns(pairs: Sequence[tuple[str, str]], encode: Callable[[str], str] | None) -> tuple[list[str], list[str]]:
    channels = [channel for channel, _ in pairs]
    payloads = [payload for _, payload in pairs]
    return (channels, payloads) if encode is None else (list(map(encode, channels)), list(map(encode, payloads)))
