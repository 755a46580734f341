"""Metadata of messages: its forms, and what publishers may choose."""

import orjson
import pytest

from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.core.messages import EncodedMessage, decode_notification
from socketio_pg.core.meta import Meta, parse_meta, validate_exclude, validate_traceparent
from socketio_pg.core.publications import requested_publication, wants_echo
from socketio_pg.log.positions import decode_batch, encode_batches

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID, PARENT_ID = TRACE.split("-")[1:3]


@pytest.mark.parametrize(
    "meta",
    [
        Meta('{"sub":"42","n":123456789012345678901234567890}'),
        Meta(traceparent=TRACE),
        Meta('{"sub":"ü"}', TRACE, "abc"),
    ],
)
def test_metadata_survives_its_text(meta: Meta) -> None:
    assert parse_meta(meta.to_json()) == meta


def test_unknown_metadata_is_none() -> None:
    assert parse_meta('{"of": "a later version"}') is None
    with pytest.raises(ValueError, match="not an object"):
        parse_meta("[]")


def test_message_has_its_metadata_on_the_wire_but_not_the_excluded_client() -> None:
    message = EncodedMessage("foo", "1", 7, "2026-11-24T12:00:00Z", meta=Meta('{"sub":"42"}', TRACE, "abc"))
    assert orjson.loads(orjson.dumps(message.to_wire())) == {
        "channel": "foo", "payload": 1, "from": {"sub": "42"}, "traceparent": TRACE, "position": 7,
        "published_at": "2026-11-24T12:00:00Z",
    }  # fmt: skip
    assert (message.exclude, message.sender()) == ("abc", {"sub": "42"})
    plain = EncodedMessage("foo", "1")
    assert (plain.exclude, plain.sender(), list(plain.to_wire())) == (None, None, ["channel", "payload"])


def test_notification_with_metadata_behind_a_nul() -> None:
    message = decode_notification("foo", f'{{"a": 1}}\0{Meta(exclude="abc").to_json()}')
    assert (message.payload_json, message.exclude) == ('{"a": 1}', "abc")


def lines(*metas: str | None) -> str:
    return "\n".join(
        "\t".join(part for part in ("foo", f"time {n}", str(n), meta, f'{{"n": {n}}}') if part is not None)
        for n, meta in enumerate(metas, 1)
    )


def test_batch_has_metadata_of_some_messages() -> None:
    [text] = encode_batches("epoch", 5, lines(None, '{"exclude": "abc"}', None), 5000, with_meta=True)
    assert text.startswith("epoch 5 7 meta\n")
    batch = decode_batch(text)
    assert batch is not None
    assert batch.messages is not None
    assert [message.exclude for message in batch.messages] == [None, "abc", None]
    assert [message.payload_json for message in batch.messages] == ['{"n": 1}', '{"n": 2}', '{"n": 3}']
    assert [message.outbox_id for message in batch.messages] == [1, 2, 3]


def test_batch_without_metadata_is_as_older_servers_know_it() -> None:
    [text] = encode_batches("epoch", 5, lines(None), 5000)
    assert text == 'epoch 5 5 ids\nfoo\ttime 1\t1\t{"n": 1}'
    assert decode_batch("epoch 5 5 later\nfoo\ttime\t1\t{}") is None, (
        "a server reads from the log what it does not know"
    )
    assert decode_batch("epoch 5 5 meta\nfoo\ttime\t1\t[]\t{}") is None, "damaged"


@pytest.mark.parametrize(
    "text", [TRACE, TRACE.replace("00-", "cc-", 1), TRACE.replace("00-", "01-", 1) + "-what-follows"]
)
def test_traceparent_is_passed_on(text: str) -> None:
    assert requested_publication({"channel": "foo", "payload": 1, "traceparent": text}).traceparent == text


@pytest.mark.parametrize(
    "text",
    [
        "", 7, TRACE.upper(), TRACE + "-more", TRACE + "\n", f" {TRACE}", TRACE.replace("00-", "ff-", 1), TRACE[:-1],
        TRACE.replace(TRACE_ID, "0" * 32), TRACE.replace(PARENT_ID, "0" * 16),
        TRACE.replace("00-", "01-", 1) + "-" + "x" * 73, TRACE.replace("00-", "01-", 1) + "x",
    ],
)  # fmt: skip
def test_invalid_traceparent_is_refused(text: object) -> None:
    with pytest.raises(InvalidRequestError, match="W3C Trace Context"):
        validate_traceparent(text)


@pytest.mark.parametrize("sid", ["", "a b", "x" * 65, "ü", "a\n", 7, ["a"]])
def test_excluded_client_must_be_an_id(sid: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"exclude must be the id of a Socket\.IO client"):
        validate_exclude(sid)


def test_requests_without_metadata() -> None:
    found = requested_publication({"channel": "foo", "payload": 1, "exclude": None, "traceparent": None, "from": "me"})
    assert (found.exclude, found.traceparent, found.sender) == (None, None, None)
    assert [wants_echo(request) for request in ({}, {"echo": None}, {"echo": True}, {"echo": False})] == [True] * 3 + [
        False
    ]
    with pytest.raises(InvalidRequestError, match="echo must be true or false"):
        wants_echo({"echo": "no"})
