"""Bookkeeping of subscribers, channels, patterns and filters. Pure, no I/O.

A pattern is the name of a subscription like a channel: wherever a method takes a channel, it takes a pattern too.
"""

from collections.abc import Collection, Hashable, Sequence

from socketio_pg.core.patterns import is_pattern, overlap
from socketio_pg.pubsub.filter_index import FilterIndex
from socketio_pg.pubsub.filters import Filter
from socketio_pg.pubsub.patterns import Patterns


class UnknownSubscriberError(LookupError):
    """The subscriber was never added, or has left."""


class Hub:
    """Subscribers (any hashable: the ``sid`` of a Socket.IO client, a Python subscription) and their channels."""

    def __init__(self) -> None:
        self._channels: dict[str, set[Hashable]] = {}
        self._subscribers: dict[Hashable, set[str]] = {}
        #: The number of subscriptions of all subscribers.
        self.subscription_count = 0
        #: Those of the channels' names that are patterns, and those of each subscriber.
        self.patterns = Patterns()
        self._patterns_of: dict[Hashable, set[str]] = {}
        self._held: dict[str, dict[Hashable, object]] = {}
        self._held_of: dict[Hashable, set[str]] = {}
        #: Channel → the subscribers whose hold has ended since the channel is watched.
        self._released: dict[str, set[Hashable]] = {}
        self._filters: dict[str, FilterIndex] = {}
        self._filter_of: dict[tuple[Hashable, str], Filter] = {}
        #: The subscribers of a channel that get numbers as strings.
        self._strings: dict[str, set[Hashable]] = {}
        #: Conditions, and characters in normal form, of all filters of a subscriber.
        self._filter_sizes: dict[Hashable, tuple[int, int]] = {}

    def add(self, subscriber: Hashable) -> None:
        """Add ``subscriber``; idempotent."""
        self._subscribers.setdefault(subscriber, set())

    def drop(self, subscriber: Hashable) -> list[str]:
        """Forget ``subscriber``. Return the channels that have no subscriber left."""
        orphaned = []
        for channel in self._subscribers.pop(subscriber, ()):
            if self._leave(subscriber, channel):
                orphaned.append(channel)
        return orphaned

    def subscribe(self, subscriber: Hashable, channel: str) -> bool:
        """Add a subscription. Return True when it is the channel's first.

        Raises :class:`UnknownSubscriberError` for a subscriber that has left: a request may run after its client has
        disconnected, and must leave nothing behind.
        """
        try:
            channels = self._subscribers[subscriber]
        except KeyError:
            raise UnknownSubscriberError(subscriber) from None
        if channel not in channels:
            channels.add(channel)
            self.subscription_count += 1
        members = self._channels.setdefault(channel, set())
        members.add(subscriber)
        if is_pattern(channel):
            self.patterns.add(channel)
            self._patterns_of.setdefault(subscriber, set()).add(channel)
        return len(members) == 1

    def unsubscribe(self, subscriber: Hashable, channel: str) -> bool:
        """Remove a subscription. Return True when it was the channel's last."""
        channels = self._subscribers.get(subscriber)
        if channels is None or channel not in channels:
            return False
        channels.remove(channel)
        return self._leave(subscriber, channel)

    def is_subscribed(self, subscriber: Hashable, channel: str) -> bool:
        """Return whether ``subscriber`` has a subscription to ``channel``."""
        return subscriber in self._channels.get(channel, ())

    def names(self, channel: str) -> Sequence[str]:
        """Return the names whose subscribers get the messages of ``channel``: it, and the patterns that match it."""
        return (channel, *self.patterns.matching(channel)) if self.patterns else (channel,)

    def patterns_of(self, subscriber: Hashable) -> Collection[str]:
        """Return the patterns of ``subscriber``."""
        return self._patterns_of.get(subscriber, ())

    def overlapping(self, subscriber: Hashable, channel: str) -> list[str]:
        """Return the other channels and patterns of ``subscriber`` that may get the same messages as ``channel``.

        Also those that get the same messages as one of these: together they get each message once.
        """
        patterns = self._patterns_of.get(subscriber)
        if not patterns:
            return []
        found, left = {channel}, set(self._subscribers[subscriber]) - {channel}
        waiting = [channel]
        while waiting and left:
            name = waiting.pop()
            others = left if is_pattern(name) else left & patterns
            reached = [other for other in others if overlap(name, other)]
            found.update(reached)
            left.difference_update(reached)
            waiting += reached
        return [name for name in found if name != channel]

    def set_filter(self, subscriber: Hashable, channel: str, filter: Filter | None) -> None:
        """Replace the filter of an existing subscription; None removes it."""
        self._drop_filter(subscriber, channel)
        if filter is not None:
            self._filter_of[subscriber, channel] = filter
            self._filters.setdefault(channel, FilterIndex()).add(filter)
            self._filter_sizes[subscriber] = self.filters_size(subscriber, filter)

    def filter_of(self, subscriber: Hashable, channel: str) -> Filter | None:
        """Return the filter of a subscription, or None."""
        return self._filter_of.get((subscriber, channel))

    def set_strings(self, subscriber: Hashable, channel: str, wanted: bool) -> None:
        """Set whether an existing subscription gets the numbers of payloads as strings."""
        if wanted:
            self._strings.setdefault(channel, set()).add(subscriber)
        else:
            self._drop_strings(subscriber, channel)

    def wants_strings(self, subscriber: Hashable, channel: str) -> bool:
        """Return whether a subscription gets the numbers of payloads as strings."""
        return subscriber in self._strings.get(channel, ())

    def has_strings(self, channel: str) -> bool:
        """Return whether any subscription of ``channel`` gets the numbers of payloads as strings."""
        return channel in self._strings

    @property
    def any_strings(self) -> bool:
        """Whether any subscription gets the numbers of payloads as strings."""
        return bool(self._strings)

    def filters_size(
        self, subscriber: Hashable, more: Filter | None = None, less: Filter | None = None
    ) -> tuple[int, int]:
        """Return the conditions and characters of all filters of ``subscriber``, with ``more`` and without ``less``."""
        conditions, characters = self._filter_sizes.get(subscriber, (0, 0))
        for filter, sign in ((more, 1), (less, -1)):
            if filter is not None:
                conditions += sign * len(filter.conditions)
                characters += sign * len(filter.text)
        return conditions, characters

    @property
    def has_filters(self) -> bool:
        """Whether any subscription has a filter."""
        return bool(self._filters)

    def filters(self, channel: str) -> FilterIndex | None:
        """Return the filters of the channel's subscriptions; None when no subscription has one."""
        return self._filters.get(channel)

    def hold(self, subscriber: Hashable, channel: str, replay: object) -> None:
        """Withhold live messages of the log from a subscription during a ``replay``.

        A later hold of the same subscription replaces it; the end of the subscription ends it.
        """
        self._held.setdefault(channel, {})[subscriber] = replay
        self._held_of.setdefault(subscriber, set()).add(channel)

    def held_by(self, subscriber: Hashable, channel: str) -> object | None:
        """Return the replay that holds the subscription, or None."""
        return self._held.get(channel, {}).get(subscriber)

    def release(self, subscriber: Hashable, channel: str) -> None:
        """End the hold of a subscription."""
        held = self._held.get(channel)
        if held is not None:
            if held.pop(subscriber, None) is not None:
                of_subscriber = self._held_of[subscriber]
                of_subscriber.discard(channel)
                if not of_subscriber:
                    del self._held_of[subscriber]
                if channel in self._released:
                    self._released[channel].add(subscriber)
            if not held:
                del self._held[channel]

    def watch_releases(self, channel: str) -> None:
        """Note from now on which holds end, for :meth:`take_released`."""
        self._released.setdefault(channel, set())

    def take_released(self, channel: str, *, last: bool = False) -> set[Hashable]:
        """Return the subscribers whose hold has ended since the last call. ``last``: stop watching."""
        found = self._released.pop(channel, set())
        if not last:
            self._released[channel] = set()
        return found

    def release_all(self) -> None:
        """End all holds."""
        self._held.clear()
        self._held_of.clear()

    def held_of(self, subscriber: Hashable) -> Collection[str]:
        """Return the channels and patterns of ``subscriber`` whose subscription is held."""
        return self._held_of.get(subscriber, ())

    def held(self, channel: str) -> tuple[Hashable, ...]:
        """Return the subscribers of ``channel`` whose subscription is held."""
        return tuple(self._held.get(channel, ()))

    def channels(self) -> set[str]:
        """Return all channels that have a subscriber."""
        return set(self._channels)

    def has_channel(self, channel: str) -> bool:
        """Return whether ``channel`` has a subscriber."""
        return channel in self._channels

    @property
    def channel_count(self) -> int:
        """The number of channels, and of patterns, that have a subscriber."""
        return len(self._channels)

    def channels_of(self, subscriber: Hashable) -> set[str]:
        """Return the channels of ``subscriber``."""
        return set(self._subscribers.get(subscriber, ()))

    def count_channels(self, subscriber: Hashable) -> int:
        """Return the number of channels of ``subscriber``."""
        return len(self._subscribers.get(subscriber, ()))

    def sizes(self) -> list[int]:
        """Return the number of subscribers of each channel, and of each pattern."""
        return [len(members) for members in self._channels.values()]

    def count_pattern_subscriptions(self) -> int:
        """Return the number of subscriptions to patterns."""
        return sum(len(patterns) for patterns in self._patterns_of.values())

    def count_filtered(self) -> int:
        """Return the number of subscriptions with a filter."""
        return len(self._filter_of)

    def count_filters(self) -> int:
        """Return the number of distinct filters, counted for each channel."""
        return sum(len(index) for index in self._filters.values())

    def count_held(self) -> int:
        """Return the number of held subscriptions."""
        return sum(len(held) for held in self._held.values())

    def subscribers(self, channel: str) -> tuple[Hashable, ...]:
        """Return the subscribers of ``channel``."""
        return tuple(self._channels.get(channel, ()))

    def count_subscribers(self, channel: str) -> int:
        """Return the number of subscribers of ``channel``."""
        return len(self._channels.get(channel, ()))

    def __len__(self) -> int:
        """Return the number of subscribers."""
        return len(self._subscribers)

    def _leave(self, subscriber: Hashable, channel: str) -> bool:
        self.subscription_count -= 1
        self.release(subscriber, channel)
        self._drop_filter(subscriber, channel)
        self._drop_strings(subscriber, channel)
        members = self._channels[channel]
        members.discard(subscriber)
        if is_pattern(channel):
            patterns = self._patterns_of[subscriber]
            patterns.discard(channel)
            if not patterns:
                del self._patterns_of[subscriber]
            if not members:
                self.patterns.discard(channel)
        if members:
            return False
        del self._channels[channel]
        return True

    def _drop_strings(self, subscriber: Hashable, channel: str) -> None:
        wanting = self._strings.get(channel)
        if wanting is not None:
            wanting.discard(subscriber)
            if not wanting:
                del self._strings[channel]

    def _drop_filter(self, subscriber: Hashable, channel: str) -> None:
        filter = self._filter_of.pop((subscriber, channel), None)
        if filter is not None:
            size = self.filters_size(subscriber, less=filter)
            if any(size):
                self._filter_sizes[subscriber] = size
            else:
                del self._filter_sizes[subscriber]
            index = self._filters[channel]
            index.discard(filter)
            if not index:
                del self._filters[channel]
