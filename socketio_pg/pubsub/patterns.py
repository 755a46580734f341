"""Which of many patterns match a channel: a tree of their parts, and a cache of channels. Pure, no I/O.

The time depends on the length of the name, not on the number of patterns that do not match it.
"""

from dataclasses import dataclass, field

from socketio_pg.core.channels import RESERVED_PREFIX


@dataclass(slots=True)
class _Edges:
    """Nodes by the literal part that leads to them, and the lengths of these parts with their number."""

    nodes: "dict[str, _Node]" = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)

    def open(self, part: str) -> "_Node":
        found = self.nodes.get(part)
        if found is None:
            found = self.nodes[part] = _Node()
            self.lengths[len(part)] = self.lengths.get(len(part), 0) + 1
        return found

    def close(self, part: str) -> None:
        del self.nodes[part]
        left = self.lengths[len(part)] - 1
        if left:
            self.lengths[len(part)] = left
        else:
            del self.lengths[len(part)]


@dataclass(slots=True)
class _Node:
    """A node of the tree: literal parts of patterns lead here, and more of them or the last one may follow.

    The node of a last part has the ``pattern`` that ends there.
    """

    middles: _Edges = field(default_factory=_Edges)
    ends: _Edges = field(default_factory=_Edges)
    pattern: str | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.middles.nodes or self.ends.nodes or self.pattern)


class Patterns:
    """A set of patterns, each of which has at least one ``*``."""

    #: Channels in the cache.
    max_cached = 20_000

    def __init__(self) -> None:
        self._patterns: set[str] = set()
        self._begins = _Edges()
        self._cache: dict[str, tuple[str, ...]] = {}

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def __len__(self) -> int:
        return len(self._patterns)

    def __contains__(self, pattern: object) -> bool:
        return pattern in self._patterns

    def add(self, pattern: str) -> None:
        """Add a pattern; twice is harmless."""
        if pattern not in self._patterns:
            self._patterns.add(pattern)
            self._cache.clear()
            begin, *middles, end = pattern.split("*")
            node = self._begins.open(begin)
            for part in middles:
                node = node.middles.open(part)
            node.ends.open(end).pattern = pattern

    def discard(self, pattern: str) -> None:
        """Remove a pattern; twice is harmless."""
        if pattern in self._patterns:
            self._patterns.discard(pattern)
            self._cache.clear()
            begin, *middles, end = pattern.split("*")
            path = [(self._begins, begin)]
            for part in middles:
                edges, before = path[-1]
                path.append((edges.nodes[before].middles, part))
            edges, before = path[-1]
            path.append((edges.nodes[before].ends, end))
            for edges, part in reversed(path):
                node = edges.nodes[part]
                if edges is path[-1][0]:
                    node.pattern = None
                if not node.is_empty:
                    break
                edges.close(part)

    def matching(self, channel: str) -> tuple[str, ...]:
        """Return the patterns that match ``channel``, in order; none for the server's own channels."""
        found = self._cache.get(channel)
        if found is None:
            if len(self._cache) >= self.max_cached:
                del self._cache[next(iter(self._cache))]
            found = self._cache[channel] = () if channel.startswith(RESERVED_PREFIX) else self._find(channel)
        return found

    def _find(self, channel: str) -> tuple[str, ...]:
        found: list[str] = []
        for length in self._begins.lengths:
            node = self._begins.nodes.get(channel[:length]) if length <= len(channel) else None
            if node is not None:
                self._follow(node, channel, length, found)
        return tuple(sorted(found))

    def _follow(self, node: _Node, channel: str, position: int, found: list[str]) -> None:
        """Add the patterns of a node whose parts up to there are in ``channel`` before ``position``."""
        rest = len(channel) - position
        for length in node.ends.lengths:
            end = node.ends.nodes.get(channel[len(channel) - length :]) if length <= rest else None
            if end is not None and end.pattern is not None:
                found.append(end.pattern)
        for length in node.middles.lengths:
            tried: set[str] = set()
            for start in range(position, len(channel) - length + 1):
                part = channel[start : start + length]
                if part in node.middles.nodes and part not in tried:
                    tried.add(part)  # its first place leaves the most for the parts that follow
                    self._follow(node.middles.nodes[part], channel, start + length, found)
