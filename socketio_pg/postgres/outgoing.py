"""Messages on their way to PostgreSQL, and the SQL that sends them. No I/O."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

#: Milliseconds that a batch waits for a transaction that has published the same id: then that message waits alone.
ID_MILLISECONDS = 10


class Outgoing(NamedTuple):
    """JSON text for ``channel``, sent with NOTIFY or, if ``durable``, through the log; once for each ``id``."""

    channel: str
    payload_json: str
    durable: bool = False
    id: str | None = None


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


def statements(messages: Sequence[Outgoing], encode: Callable[[str], str] | None, *, numbers: bool) -> Statements:
    """Return the statements that send ``messages``.

    ``encode`` encodes texts for the connection, if that is necessary. ``numbers``: return the messages' ids in the
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
        parameters += _columns(plain, encode)
    if len(plain) == len(messages):
        return Statements(";".join(sql), parameters, True, False)
    others = messages if not plain else [one for one in messages if one.durable or one.id is not None]
    has_ids = any(one.id is not None for one in others)
    parameters += _columns(others, encode)
    if has_ids:
        sql.append(f"SET LOCAL lock_timeout = {ID_MILLISECONDS}")
        sql.append(
            "SELECT socketio_pg.publish_as(channel, payload, durable, id)"
            " FROM unnest(%s::pg_catalog.text[], %s::pg_catalog.text[], %s::pg_catalog.bool[], %s::pg_catalog.text[])"
            " AS message(channel, payload, durable, id)"
        )
        parameters.append([one.durable for one in others])
        parameters.append([one.id if one.id is None or encode is None else encode(one.id) for one in others])
    else:
        # currval() after publish(): PostgreSQL evaluates the columns of a row in order.
        number = ", pg_catalog.currval('socketio_pg.outbox_id_seq')" if numbers else ""
        sql.append(
            f"SELECT socketio_pg.publish(channel, payload::pg_catalog.jsonb){number}"
            " FROM unnest(%s::pg_catalog.text[], %s::pg_catalog.text[]) AS message(channel, payload)"
        )
    return Statements(";".join(sql), parameters, False, has_ids)


def _columns(messages: Sequence[Outgoing], encode: Callable[[str], str] | None) -> tuple[list[str], list[str]]:
    channels = [message.channel for message in messages]
    payloads = [message.payload_json for message in messages]
    return (channels, payloads) if encode is None else (list(map(encode, channels)), list(map(encode, payloads)))
