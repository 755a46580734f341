"""Ephemeral messages: requests, rounds, and what is kept for slow readers."""

import json
import math
from typing import Any

import pytest
from socketio.packet import ACK

from socketio_pg.core.errors import InvalidRequestError, PayloadTooLargeError
from socketio_pg.ephemeral import kept as keeping
from socketio_pg.ephemeral.kept import Kept
from socketio_pg.ephemeral.messages import EphemeralMessage, from_batch, is_ephemeral, requested_ephemeral, to_batch
from socketio_pg.ephemeral.rounds import MAX_ROUND, MAX_WAITING, Rounds
from socketio_pg.protocol.encoded import EncodedPacket, framed
from socketio_pg.websocket import SocketServer
from tests.support.wire import Wire


def message(sender: str, payload: object, key: str | None = None, channel: str = "map") -> EphemeralMessage:
    return EphemeralMessage(channel, sender, key, json.dumps(payload), None)


def taken(rounds: Rounds, now: float) -> dict[str, list[tuple[str, object]]]:
    return {
        channel: [(one.sender, json.loads(one.payload_json)) for one in messages]
        for channel, messages in rounds.take_due(now)
    }


def test_round_has_the_newest_message_of_each_sender_and_key() -> None:
    rounds = Rounds(lambda channel: 0.05)
    assert rounds.next_due() is None
    assert rounds.add(message("a", 1), 10.0) == 10.0, "the first message after a pause is due at once"
    assert taken(rounds, 10.0) == {"map": [("a", 1)]}
    assert rounds.next_due() is None
    for sender, payload, key in (("a", 2, None), ("b", 3, None), ("a", "t", "typing"), ("a", 4, None)):
        assert rounds.add(message(sender, payload, key), 10.01) == 10.05
    assert (rounds.replaced, len(rounds)) == (1, 3)
    assert taken(rounds, 10.04) == {}
    assert rounds.next_due() == 10.05
    assert taken(rounds, 10.06) == {"map": [("a", 4), ("b", 3), ("a", "t")]}
    # After a pause of its own length, a channel is forgotten, and begins at once again.
    assert taken(rounds, 10.2) == {}
    assert rounds.add(message("a", 5), 10.3) == 10.3


def test_round_is_bounded_and_no_sender_waits_for_ever() -> None:
    rounds = Rounds(lambda channel: 1.0)
    size = MAX_ROUND // 3
    for number in range(7):
        rounds.add(message(str(number), "x" * size), 0.0)
    found = []
    for round in range(4):
        found.append([sender for sender, _ in taken(rounds, float(round)).get("map", [])])
        if found[-1]:
            # Those that were just sent come again, after those that wait.
            rounds.add(message(found[-1][0], "y" * size), float(round))
    assert found[0] == ["0", "1"]
    assert [sender for senders in found for sender in senders][:8] == ["0", "1", "2", "3", "4", "5", "6", "0"]
    rounds = Rounds(lambda channel: 1.0)
    for number in range(MAX_WAITING + 5):
        rounds.add(message(str(number), 1), 0.0)
    assert (len(rounds), rounds.replaced) == (MAX_WAITING, 5)
    assert taken(rounds, 0.0)["map"][0] == ("5", 1)
    rounds = Rounds(lambda channel: 1.0)
    rounds.add(message("large", "x" * 2 * MAX_ROUND), 0.0)
    assert [sender for sender, _ in taken(rounds, 0.0)["map"]] == ["large"]


def test_kept_messages_are_the_newest_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "MAX_KEPT", 100)
    kept = Kept()
    packets = [framed("x" * 18) for _ in range(6)]  # 21 bytes each

    def add(sender: str, packet: EncodedPacket) -> int:
        return kept.add("slow", [(("map", sender, None), packet)])

    assert [add(sender, packet) for sender, packet in zip("abab", packets, strict=False)] == [0, 0, 1, 1]
    assert [add(sender, packets[4]) for sender in "cd"] == [0, 0]
    assert add("e", packets[5]) == 1, "the oldest one has no room"
    assert (list(kept), "slow" in kept, bool(kept)) == (["slow"], True, True)
    assert kept.take("slow") == {
        ("map", "b", None): packets[3], ("map", "c", None): packets[4], ("map", "d", None): packets[4],
        ("map", "e", None): packets[5],
    }  # fmt: skip
    assert not kept
    assert kept.take("slow") == {}
    large = framed("x" * 500)
    assert add("a", large) == 0
    assert add("b", packets[0]) == 1
    assert list(kept.take("slow").values()) == [packets[0]]


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({}, InvalidRequestError),
        ({"payload": 1, "id": "x"}, InvalidRequestError),
        ({"payload": 1, "durable": True}, InvalidRequestError),
        ({"payload": 1, "echo": "yes"}, InvalidRequestError),
        ({"payload": 1, "key": ""}, InvalidRequestError),
        ({"payload": 1, "key": "x" * 65}, InvalidRequestError),
        ({"payload": 1, "key": 5}, InvalidRequestError),
        ({"payload": math.nan}, InvalidRequestError),
        ({"payload": ["\ud800"]}, InvalidRequestError),
        ({"payload": "x" * 19}, PayloadTooLargeError),
        ({"payload": "ü" * 10}, PayloadTooLargeError),
    ],
)
def test_invalid_requests(request_: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        requested_ephemeral(request_, 20)
    assert type(raised.value) is error


def test_payload_is_what_the_client_sent() -> None:
    payloads: tuple[Any, ...] = (None, 0, {"x": 1.5, "null": None}, "ü" * 9, 2**70, [[]])
    for payload in payloads:
        requested = requested_ephemeral({"payload": payload, "durable": False, "id": None}, 30)
        assert json.loads(requested.payload_json) == payload
        one = EphemeralMessage('a "b"', "sid", "k", requested.payload_json, '{"sub":"ü"}')
        assert json.loads(one.packet()[1:]) == [
            "event",
            {
                "channel": 'a "b"', "payload": payload, "ephemeral": True, "key": "k",
                "from": {"client": "sid", "sub": "ü"},
            },
        ]  # fmt: skip
        assert list(from_batch(json.loads(json.dumps(to_batch([one, one]))))) == [one, one]
    assert json.loads(one.packet('"7"')[1:])[1]["payload"] == "7"
    assert "key" not in json.loads(message("a", 1).packet()[1:])[1]
    assert json.loads(message("a", 1).packet()[1:])[1]["from"] == {"client": "a"}
    unknowns: tuple[Any, ...] = (
        None,
        [],
        {"map": 5},
        {"map": [["a", None, 5, None], ["a", 5, "1", None], ["a"], "map"]},
    )
    for unknown in unknowns:
        assert list(from_batch(unknown)) == []
    assert [is_ephemeral({"ephemeral": one}) for one in (True, False, None)] == [True, False, False]
    with pytest.raises(InvalidRequestError):
        is_ephemeral({"ephemeral": 1})


def test_publications_are_handled_at_once_and_other_events_are_not_touched(socket_server: SocketServer) -> None:
    """Without a green thread, and without a count as an event."""
    socket_server._started = True  # otherwise the first client starts it, and it looks for its database
    ephemeral = socket_server.ephemeral
    wire = Wire(socket_server.socketio.server)
    sid = wire.connect()
    one = '["publish",{"channel":"map","payload":{"x":1},"ephemeral":true}]'
    assert not ephemeral.take_at_once("unknown", f"2{one}")
    for other in (
        '2["publish",{"channel":"map","payload":"ephemeral"}]',
        '2["publish",{"channel":"map","payload":1,"ephemeral":false}]',
        '2["publish",{"channel":"map","payload":1,"ephemeral":1}]',
        '2["subscribe",{"channel":"map","ephemeral":true}]',
        '2["publish",{"channel":"map","ephemeral":true},2]',
        '2["publish",{"ephemeral":true]',
        '2["publish","ephemeral"]',
        f'2["publish",{{"channel":"map","payload":"{"x" * 9999}","ephemeral":true}}]',
        f"2/admin,{one}",
        f"3{one}",
    ):
        assert not ephemeral.take_at_once("eio1", other), other
    assert wire.answers() == []
    assert ephemeral.take_at_once("eio1", f"2{one}")
    assert ephemeral.take_at_once("eio1", f"27{one}")
    assert wire.answers() == [(ACK, 7, [{"ok": True, "channel": "map"}])]
    refused = f'28["publish",{{"channel":"map","payload":"{"x" * 1001}","ephemeral":true}}]'
    assert ephemeral.take_at_once("eio1", refused)
    [(_, id, [answer])] = wire.answers()
    assert (id, answer["error"]["code"]) == (8, "payload_too_large")
    ephemeral.drop(sid)
