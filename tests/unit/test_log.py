"""Pages of a log that grows and is trimmed while they are read: no message is skipped without a report."""

import dataclasses
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.core.messages import from_log
from socketio_pg.log.history import Read
from socketio_pg.log.log import MAX_PAGE_CHARACTERS, Log, ReplayPage
from socketio_pg.log.positions import Head
from socketio_pg.log.recent import Page
from socketio_pg.log.starts import LogPosition

#: Two payloads of this size fill a page.
LARGE = '"' + "x" * (MAX_PAGE_CHARACTERS // 2) + '"'


@dataclasses.dataclass
class Node:
    """A simulated follower and history over a list. The log changes whenever a caller waits."""

    #: For each position: whether the message is in our channel, and its payload.
    log: list[tuple[bool, str]]
    data: st.DataObject
    position: int = 0
    trimmed: int = 0
    epoch: str | None = "e"
    installed: bool = True

    def wait(self) -> None:
        self.position = min(len(self.log), self.position + self.data.draw(st.sampled_from([4, 2, 1, 0])))
        if self.data.draw(st.integers(0, 3)) == 3:
            # Like the relay, never trims the newest message.
            most = max(self.trimmed, self.position - 1)
            self.trimmed = self.data.draw(st.integers(self.trimmed, most))

    # -- as Follower and History

    def head(self) -> Head:
        self.wait()
        return Head("e", len(self.log), self.trimmed)

    def before_newest(self, channel: str, count: int, upto: int) -> int:
        self.wait()
        ours = [n for n in range(self.trimmed + 1, upto + 1) if self.log[n - 1][0]]
        return ours[-count] - 1 if 0 < count <= len(ours) else min(self.trimmed, upto) if count else upto

    def channel_page(self, channel: str, after: int, upto: int) -> Read:
        self.wait()
        if after < self.trimmed:
            return Read(Page(after, after, ()), self.trimmed)
        end = min(upto, after + self.data.draw(st.sampled_from([6, 3, 2, 1])))
        ours = [n for n in range(after + 1, end + 1) if self.log[n - 1][0]]
        return Read(Page(after, end, [from_log(n, channel, "2026", self.log[n - 1][1]) for n in ours]), self.trimmed)


def read(node: Any, start: LogPosition | int | None, limit: int) -> ReplayPage:
    page = Log(node, node).read_page("a", start, limit)
    assert len(page.messages) <= limit
    assert sum(len(message.payload_json) for message in page.messages[:-1]) < MAX_PAGE_CHARACTERS
    return page


def positions(page: ReplayPage) -> list[int]:
    return [message.position for message in page.messages if message.position is not None]


logs = st.lists(st.tuples(st.booleans(), st.sampled_from(["0", LARGE])), min_size=1, max_size=40)


@given(logs, st.integers(1, 7), st.data())
def test_pages_after_a_position_have_all_messages(log: list[tuple[bool, str]], limit: int, data: st.DataObject) -> None:
    node = Node(log, data)
    at, found, missed = 0, [], set[int]()
    while at < len(log):
        page = read(node, LogPosition("e", at), limit)
        if page.recovery["recovered"]:
            found += positions(page)
            # A page that reports more is not empty.
            assert not page.more or page.messages
        else:
            assert (page.recovery["reason"], page.messages, page.more) == ("trimmed", [], False)
            missed |= set(range(at + 1, page.position + 1))
        assert page.position >= at
        if page.position == at:
            node.wait()
        at = page.position
    wanted = {n for n in range(1, len(log) + 1) if log[n - 1][0]}
    assert found == sorted(wanted - missed)


@given(logs, st.integers(1, 7), st.integers(0, 20), st.data())
def test_page_of_the_newest_messages(log: list[tuple[bool, str]], limit: int, count: int, data: st.DataObject) -> None:
    node = Node(log, data, position=len(log))
    page = read(node, count, limit)
    found = positions(page)
    newest = [n for n in range(1, len(log) + 1) if log[n - 1][0]][-count:] if count else []
    # The oldest of the newest messages come first, except trimmed ones, and `more` reports the rest.
    kept = [n for n in newest if not found or n >= found[0]] if found else []
    assert found == kept[: len(found)]
    # A page also ends before positions that were trimmed while it was read: the next request reports them.
    assert page.more == (len(found) < len(kept) or (bool(found) and node.trimmed > page.position))
    assert found or all(n <= node.trimmed for n in newest)


@given(logs, st.data())
def test_page_without_a_start_has_the_current_position(log: list[tuple[bool, str]], data: st.DataObject) -> None:
    node = Node(log, data, position=data.draw(st.integers(0, len(log))))
    page = read(node, None, 10)
    assert page == ReplayPage("e", node.position, {})
    where = {"epoch": "e", "position": node.position, "next": f"e:{node.position}"}
    assert page.to_wire("a") == {"channel": "a", "messages": [], "more": False} | where


def test_without_a_log() -> None:
    node: Any = Node([], data=None, epoch=None, installed=False)  # type: ignore[arg-type]
    nothing = {"channel": "a", "messages": [], "more": False}
    assert read(node, 5, 10).to_wire("a") == nothing
    told = nothing | {"recovered": False, "reason": "not_installed"}
    assert read(node, LogPosition("e", 1), 10).to_wire("a") == told
