"""Rate and count limits of clients and addresses: token buckets and counters.

A bucket holds the allowance of a few seconds, so that a page that loads may send all its requests together.
"""

import time
from collections.abc import Mapping

from socketio_pg.core.config import Settings
from socketio_pg.core.errors import FilterTooExpensiveError, RateLimitedError, TooManySubscriptionsError
from socketio_pg.engine.origins import is_public
from socketio_pg.workers.local_counts import ATTEMPTS, FAILURES, Counts, Exceeded

#: The size of a bucket, in seconds of its rate.
BURST_SECONDS = 5.0
#: The size of a bucket of a rule for a channel, in seconds of its rate; and the maximum number of them for one client.
RULE_BURST_SECONDS, MAX_RATED_CHANNELS = 2.0, 100
#: Maximum conditions, and characters in normal form, of all filters of one client together. They bound the memory.
MAX_CLIENT_CONDITIONS, MAX_CLIENT_FILTERS = 4_000, 262_144
#: The size of the bucket for the cost of filters, in seconds; and the seconds without new filters after it was empty.
FILTER_BURST_SECONDS, FILTER_PENALTY = 2.0, 5.0
#: Channels in one request that cost as much as one event: the server needs 80 µs for each, and 160 µs for an event.
CHANNELS_PER_EVENT = 2
#: Joins and updates of presence: for each client and second, and at once for a page that loads.
PRESENCE_PER_SECOND, PRESENCE_BURST = 5, 100
#: A step of a filter takes about a nanosecond.
STEPS_PER_MILLISECOND = 1_000_000


class Bucket:
    """A token bucket that gains ``rate`` tokens a second up to ``burst``. Starts full."""

    __slots__ = ("_at", "_burst", "_left", "_rate")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._at = time.monotonic()

    def take(self, amount: float = 1.0) -> bool:
        """Take ``amount`` tokens and return True, or none when there are fewer. A full bucket allows any amount."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < min(amount, self._burst):
            return False
        self._left -= amount
        return True

    def spend(self, amount: float) -> bool:
        """Take ``amount`` tokens even when there are fewer. Return False when it is in debt, by a burst at most."""
        self.take(0.0)
        self._left = max(self._left - amount, -self._burst)
        return self._left >= 0

    def seconds_until(self, amount: float = 1.0) -> float:
        """Return the seconds until :meth:`take` succeeds, if nothing else is taken."""
        missing = min(amount, self._burst) - self._left
        return max(0.0, missing / self._rate - (time.monotonic() - self._at))

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self._rate

    def is_full(self) -> bool:
        """Return whether the bucket is full."""
        return self._left + (time.monotonic() - self._at) * self._rate >= self._burst


class _Client:
    """The buckets of one client."""

    __slots__ = (
        "bytes", "channels", "ephemeral", "ephemeral_refused", "events", "filters", "filters_from", "presence",
        "refused",
    )  # fmt: skip

    def __init__(self, settings: Settings) -> None:
        events = settings.max_events_per_second
        self.events = Bucket(events, events * BURST_SECONDS)
        size = settings.max_event_bytes_per_second
        # A full bucket always allows one payload of the largest size.
        self.bytes = Bucket(size, max(size * BURST_SECONDS, settings.max_payload))
        #: Steps of filters.
        steps = settings.max_filter_milliseconds_per_second * STEPS_PER_MILLISECOND
        self.filters = Bucket(steps, steps * FILTER_BURST_SECONDS)
        #: The time (monotonic) from which it may have new filters.
        self.filters_from = 0.0
        #: Publications by channel, where a rule limits them; the least recent channel first.
        self.channels: dict[str, Bucket] = {}
        #: Refused events: a client that continues regardless is disconnected.
        self.refused = Bucket(events or 100, (events or 100) * BURST_SECONDS)
        #: The same for ephemeral messages; None for a client that has sent none.
        self.ephemeral: Bucket | None = None
        self.ephemeral_refused: Bucket | None = None
        #: Changes of presence; None for a client that has none.
        self.presence: Bucket | None = None


class ClientLimits:
    """The limits of connected clients, by ``sid``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clients: dict[str, _Client] = {}

    def check_event(self, sid: str, size: int, count: float = 1.0) -> None:
        """Count an event of ``size`` bytes, or ``count`` events of ``size`` bytes together.

        Raises :class:`RateLimitedError`, with ``cut_off`` set when the client must be disconnected.
        """
        events, most = self._settings.max_events_per_second, self._settings.max_event_bytes_per_second
        if not events and not most:
            return
        client = self._client(sid)
        error = None
        if events and not client.events.take(count):
            error = RateLimitedError(f"too many events: {events} a second are allowed, and short bursts")
            error.retry_after = client.events.seconds_until(count)
        elif most and not client.bytes.take(size):
            error = RateLimitedError(f"events are too large: {most} bytes a second are allowed, and short bursts")
            error.retry_after = client.bytes.seconds_until(size)
        if error is not None:
            error.cut_off = not client.refused.take()
            raise error

    def check_ephemeral(self, sid: str) -> None:
        """Count an ephemeral message. Raises :class:`RateLimitedError` as :meth:`check_event` does."""
        most = self._settings.max_ephemeral_per_second_per_client
        if not most:
            return
        client = self._client(sid)
        if client.ephemeral is None or client.ephemeral_refused is None:
            client.ephemeral = Bucket(most, most * BURST_SECONDS)
            client.ephemeral_refused = Bucket(most, most * BURST_SECONDS)
        if not client.ephemeral.take():
            error = RateLimitedError(f"too many ephemeral messages: {most} a second are allowed, and short bursts")
            error.retry_after = client.ephemeral.seconds_until()
            error.cut_off = not client.ephemeral_refused.take()
            raise error

    def check_presence(self, sid: str) -> None:
        """Count a change of a client's presence. Raises :class:`RateLimitedError`."""
        client = self._client(sid)
        if client.presence is None:
            client.presence = Bucket(PRESENCE_PER_SECOND, PRESENCE_BURST)
        if not client.presence.take():
            problem = f"too many changes of presence: {PRESENCE_PER_SECOND} a second are allowed, and short bursts"
            error = RateLimitedError(problem)
            error.retry_after = client.presence.seconds_until()
            raise error

    def check_together(self, sid: str, count: float) -> None:
        """Count ``count`` events that came in one request and were counted as one. Raises :class:`RateLimitedError`."""
        if self._settings.max_events_per_second and count > 1:
            # Gives the one event back first: a refused request costs nothing, and its retry_after is right.
            self._client(sid).events.take(-1.0)
            self.check_event(sid, 0, count)

    def check_channels_together(self, sid: str, channels: int) -> None:
        """Count a request for that many channels, which was counted as one event. Raises :class:`RateLimitedError`."""
        self.check_together(sid, channels / CHANNELS_PER_EVENT)

    def check_publication(self, sid: str, channel: str, rate: float | None) -> None:
        """Count a publication to a channel into which a client may publish ``rate`` messages a second, by its rule.

        Raises :class:`RateLimitedError`.
        """
        if rate is None:
            return
        channels = self._client(sid).channels
        bucket = channels.pop(channel, None)
        if bucket is None or bucket.rate != rate:
            bucket = Bucket(rate, max(1.0, rate * RULE_BURST_SECONDS))
        channels[channel] = bucket
        if len(channels) > MAX_RATED_CHANNELS:
            self._forget_channel(channels)
        if not bucket.take():
            error = RateLimitedError(
                f"too many messages: {rate:g} a second are allowed in this channel", channel=channel
            )
            error.retry_after = bucket.seconds_until()
            raise error

    @staticmethod
    def _forget_channel(channels: dict[str, Bucket]) -> None:
        """Forget a channel in which the client has not published for long; without one the least recent."""
        full = next((name for name, bucket in channels.items() if bucket.is_full()), None)
        del channels[next(iter(channels)) if full is None else full]

    def check_subscriptions(self, subscribed: int) -> None:
        """Raise :class:`TooManySubscriptionsError` when a client with ``subscribed`` channels may have no more."""
        most = self._settings.max_subscriptions
        if most and subscribed >= most:
            raise TooManySubscriptionsError(f"a client may subscribe to at most {most} channels")

    def check_patterns(self, patterns: int) -> None:
        """Raise :class:`TooManySubscriptionsError` when a client with so many patterns may have no more."""
        most = self._settings.max_patterns_per_client
        if patterns >= most:
            raise TooManySubscriptionsError(f"a client may subscribe to at most {most} patterns")

    def check_channels(self, channels: int) -> None:
        """Raise :class:`TooManySubscriptionsError` when a node that listens to ``channels`` may listen to no more."""
        most = self._settings.max_channels
        if most and channels >= most:
            raise TooManySubscriptionsError(
                f"all clients of this server together may subscribe to at most {most} channels (MAX_CHANNELS)"
            )

    def check_new_filter(self, sid: str) -> None:
        """Raise :class:`FilterTooExpensiveError`, before a filter is parsed, when the client may have no new one."""
        if time.monotonic() < self._client(sid).filters_from:
            raise FilterTooExpensiveError("the client's filters have cost too much computing time: retry later")

    def check_filters(self, conditions: int, characters: int) -> None:
        """Raise :class:`FilterTooExpensiveError` when all filters of a client together would be too large."""
        if conditions > MAX_CLIENT_CONDITIONS:
            raise FilterTooExpensiveError(
                f"the filters of a client may have at most {MAX_CLIENT_CONDITIONS} conditions in all its channels"
            )
        if characters > MAX_CLIENT_FILTERS:
            raise FilterTooExpensiveError(
                f"the filters of a client may have at most {MAX_CLIENT_FILTERS} characters in all its channels"
            )

    def spend_on_filters(self, sid: str, steps: int) -> bool:
        """Count steps of a client's filters. Return False when it has spent more than it may.

        Then it may have no new filters for :data:`FILTER_PENALTY` seconds.
        """
        client = self._client(sid)
        if not self._settings.max_filter_milliseconds_per_second or client.filters.spend(steps):
            return True
        client.filters_from = time.monotonic() + FILTER_PENALTY
        return False

    def drop(self, sid: str) -> None:
        """Forget a client that has left."""
        self._clients.pop(sid, None)

    def _client(self, sid: str) -> _Client:
        client = self._clients.get(sid)
        if client is None:
            client = self._clients[sid] = _Client(self._settings)
        return client


class RequestLimits(ClientLimits):
    """The limits of HTTP clients, by any name: their buckets are remembered for a while."""

    #: The maximum number of remembered clients; the least recent ones are forgotten first.
    max_clients = 10_000

    def _client(self, sid: str) -> _Client:
        client = super()._client(sid)
        # Moves it to the end of the dict, whose first entry is the least recent.
        self._clients[sid] = self._clients.pop(sid)
        if len(self._clients) > self.max_clients:
            del self._clients[next(iter(self._clients))]
        return client


class AddressLimits:
    """The limits of client addresses: connections that are open or not admitted yet, attempts and failures a second.

    Those on clients that are not admitted yet apply to public addresses only: another address may be that of a proxy.
    ``counts`` counts, for this process alone or for all workers of the node.
    """

    def __init__(self, settings: Settings, counts: Counts) -> None:
        self._most = settings.max_connections_per_address
        self._most_pending = settings.max_pending_per_address
        self._attempts = settings.max_attempts_per_second_per_address
        self._failures = settings.max_failed_attempts_per_second_per_address
        self._counts = counts

    def open(self, address: str) -> tuple[str, str] | None:
        """Count an attempt to connect, and an open connection, which is pending until :meth:`joined`.

        Return the reason of a refusal as a word and as a sentence, or None. A refused connection is not open.
        """
        if not self.attempt(address):
            return "address_attempts", "too many attempts to connect from this address"
        exceeded = self._counts.open(address, self._most, self._most_pending if is_public(address) else 0)
        return None if exceeded is None else _REFUSALS[exceeded]

    def attempt(self, address: str) -> bool:
        """Count an attempt to authenticate and return whether it is allowed."""
        return not self._attempts or self._counts.take(ATTEMPTS, address, self._attempts)

    def may_try(self, address: str) -> bool:
        """Return whether a token or login of this address is looked at: not after too many failures."""
        if not self._failures or not is_public(address):
            return True
        return self._counts.may_take(FAILURES, address, self._failures)

    def failed(self, address: str) -> None:
        """Count a refused token or login."""
        if self._failures and is_public(address):
            self._counts.take(FAILURES, address, self._failures)

    def joined(self, address: str) -> None:
        """Count a connection that is admitted."""
        self._counts.admit(address)

    def closed(self, address: str, *, pending: bool) -> None:
        """Count a closed connection; ``pending``: it had not been admitted."""
        self._counts.close(address, pending=pending)


_REFUSALS: Mapping[Exceeded, tuple[str, str]] = {
    "connections": ("address_connections", "too many connections from this address"),
    "pending": ("address_pending", "too many clients of this address are not admitted yet"),
}
