"""Messages on their way to PostgreSQL, and the SQL that sends them. No I/O."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: Milliseconds that a batch waits for a transaction that has published the same id: then that message waits alone.
ID_MILLISECONDS = 10


@dataclass(frozen=True, slots=True)
class Outgoing:
    """JSON text for ``channel``, sent with NOTIFY or, if ``durable``, through the log; once for each ``id``."""

    channel: str
    payload_json: str
    durable: bool = False
    id: str | None = None

    @property
    def is_plain(self) -> bool:
        """True for a NOTIFY without an id, which needs no schema."""
        return not self.durable and self.id is None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a committed message.

    ``number`` is its id in the outbox, or that of the first message with the same id, if it is a ``duplicate``. None
    for a NOTIFY without an id, and for a role that may not read ids.
    """

    number: int | None = None
    duplicate: bool = False


def begin_sql(
    messages: Sequence[Outgoing], encode: Callable[[str], str], *, numbers: bool
) -> tuple[str, list[list[object]]]:
    """Return statements that begin a transaction and send ``messages`` in it, and their parameters.

    If any of the messages is not plain, the last result has a row for each of those, in order. Its last column is the
    message's number, negative for a duplicate, or NULL without ``numbers``: if the role may not read ids. ``encode``
    encodes texts for the connection. With ids, the transaction has a lock timeout of its own.
    """
    # In one round trip, but without the COMMIT, so that a failure before it is known to have sent nothing. unnest()
    # returns rows in the order of its arrays; with several, it is always the one of pg_catalog.
    sql, parameters = ["BEGIN"], []
    plain = [message for message in messages if message.is_plain]
    if plain:
        sql.append(
            "SELECT pg_catalog.pg_notify(channel, payload)"
            " FROM unnest(%s::pg_catalog.text[], %s::pg_catalog.text[]) AS message(channel, payload)"
        )
        parameters += _columns(plain, encode)
    others = [message for message in messages if not message.is_plain]
    if any(message.id is not None for message in others):
        sql.append(f"SET LOCAL lock_timeout = {ID_MILLISECONDS}")
        sql.append(
            "SELECT socketio_pg.publish_as(channel, payload, durable, id)"
            " FROM unnest(%s::pg_catalog.text[], %s::pg_catalog.text[], %s::pg_catalog.bool[], %s::pg_catalog.text[])"
            " AS message(channel, payload, durable, id)"
        )
        parameters += _columns(others, encode)
        parameters.append([message.durable for message in others])
        parameters.append([None if message.id is None else encode(message.id) for message in others])
    elif others:
        # currval() after publish(): PostgreSQL evaluates the columns of a row in order.
        number = "pg_catalog.currval('socketio_pg.outbox_id_seq')" if numbers else "NULL"
        sql.append(
            f"SELECT socketio_pg.publish(channel, payload::pg_catalog.jsonb), {number}"
            " FROM unnest(%s::pg_catalog.text[], %s::pg_catalog.text[]) AS message(channel, payload)"
        )
        parameters += _columns(others, encode)
    return ";".join(sql), parameters


def _columns(messages: Sequence[Outgoing], encode: Callable[[str], str]) -> list[list[object]]:
    channels: list[object] = [encode(message.channel) for message in messages]
    payloads: list[object] = [encode(message.payload_json) for message in messages]
    return [channels, payloads]
