"""Lists that are searched and sorted by the server, and their rows from several processes."""

from typing import Any

from socketio_pg.control import local_channels, local_clients
from socketio_pg.core.listing import Listing, cut, matches, ordered


def test_search_finds_parts_in_any_case_and_patterns() -> None:
    assert matches("", [])
    assert matches("RD", ["news", None, "Orders"])
    assert not matches("orders1", ["orders"])
    assert matches("ord*:5", ["orders:5"])
    assert not matches("ord*:5", ["my orders:5"])


def test_rows_without_a_value_come_last_in_both_directions() -> None:
    rows = [("c", 2), ("a", None), ("b", 1), ("d", 2)]

    def names(descending: bool) -> list[str]:
        return [name for name, _ in ordered(rows, lambda row: row[1], descending, then=lambda row: row[0])]

    assert names(True) == ["c", "d", "b", "a"]
    assert names(False) == ["b", "c", "d", "a"]
    listing = Listing.from_wire(Listing("x", "since", True, 2, 1).to_wire())
    assert listing.first == 3
    assert cut([1, 2, 3, 4], listing) == [2, 3]


def row(channel: str, **more: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("sockets", "streams", "python", "patterns"), 0)
    unknown = dict.fromkeys(("messages_in", "messages_out", "bytes_in", "last_at", "last_bytes", "last_position"))
    return {"channel": channel} | empty | unknown | more


def test_channels_of_several_processes_are_added() -> None:
    found = local_channels.merge(
        [
            {
                "channels": [
                    row("a", sockets=2, messages_in=1.0, messages_out=2.0, last_at=5.0, last_position=7),
                    row("b"),
                ]
            },
            {"channels": [row("a", sockets=1, streams=4, messages_in=1.5, messages_out=7.5, last_at=6.0)]},
            {"channels": [row("a", patterns=3)]},
        ]
    )
    assert list(found) == ["a", "b"]
    assert (found["a"]["sockets"], found["a"]["streams"], found["a"]["patterns"]) == (3, 4, 3)
    assert (found["a"]["messages_in"], found["a"]["messages_out"]) == (1.5, 9.5)
    assert (found["a"]["last_at"], found["a"]["last_position"]) == (6.0, None)
    assert found["b"]["messages_in"] is None


def test_clients_of_several_processes_are_in_the_order_of_the_listing() -> None:
    rows = [
        {"sid": "1", "buffered": 0, "stuck": 0.0, "replay_lag": 9, "node": "b", "worker": None},
        {"sid": "2", "buffered": 5, "stuck": 0.0, "replay_lag": None, "node": "a", "worker": 1},
        {"sid": "3", "buffered": 5, "stuck": 2.0, "replay_lag": None, "node": "a", "worker": 0},
    ]

    def sids(sort: str, descending: bool) -> list[str]:
        return [one["sid"] for one in local_clients.merge(rows, Listing(sort=sort, descending=descending))]

    assert sids("slow", True) == ["3", "2", "1"]
    assert sids("replay_lag", True) == ["1", "2", "3"]
    assert sids("node", False) == ["3", "2", "1"]
    assert local_clients.validated(Listing()).sort == "since"
