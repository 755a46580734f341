"""How much one client, and one address, may do: token buckets and counts. Pure, but for the clock.

A bucket holds as much as comes in a few seconds, so that a page that loads may ask for everything at once.
"""

import time
from collections import OrderedDict

from socketio_pg.core.config import Settings
from socketio_pg.core.errors import RateLimitedError, TooManySubscriptionsError

#: Seconds' worth of what is allowed a second that may be used at once.
BURST_SECONDS = 5.0


class Bucket:
    """A token bucket: ``rate`` a second, ``burst`` at most. Full at the beginning."""

    __slots__ = ("_at", "_burst", "_left", "_rate")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._at = time.monotonic()

    def take(self, amount: float = 1.0) -> bool:
        """Take ``amount``, or nothing when there is less; more than the bucket holds empties a full one."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < min(amount, self._burst):
            return False
        self._left -= amount
        return True

    def seconds_until(self, amount: float = 1.0) -> float:
        """After how many seconds :meth:`take` is possible, if nobody takes anything before."""
        missing = min(amount, self._burst) - self._left
        return max(0.0, missing / self._rate - (time.monotonic() - self._at))

    def is_full(self) -> bool:
        return self._left + (time.monotonic() - self._at) * self._rate >= self._burst


class _Client:
    """The buckets of one client; made when it first needs them."""

    __slots__ = ("bytes", "events", "refused")

    def __init__(self, settings: Settings) -> None:
        events = settings.max_events_per_second
        self.events = Bucket(events, events * BURST_SECONDS)
        size = settings.max_event_bytes_per_second
        # One of the largest payloads is always possible, at first.
        self.bytes = Bucket(size, max(size * BURST_SECONDS, settings.max_payload))
        #: Events that were refused: a client that goes on and on is cut off.
        self.refused = Bucket(events or 100, (events or 100) * BURST_SECONDS)


class ClientLimits:
    """What each client may do, by its ``sid``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clients: dict[str, _Client] = {}

    def check_event(self, sid: str, size: int, count: int = 1) -> None:
        """Count an event of ``size`` bytes, or ``count`` that have so many together.

        Raises :class:`RateLimitedError`, with ``cut_off`` after far too many.
        """
        events, most = self._settings.max_events_per_second, self._settings.max_event_bytes_per_second
        if not events and not most:
            return
        client = self._client(sid)
        error = None
        if events and not client.events.take(count):
            error = RateLimitedError(f"too many events: {events} a second are allowed, and some at once")
            error.retry_after = client.events.seconds_until(count)
        elif most and not client.bytes.take(size):
            error = RateLimitedError(f"too large events: {most} bytes a second are allowed, and some at once")
            error.retry_after = client.bytes.seconds_until(size)
        if error is not None:
            error.cut_off = not client.refused.take()
            raise error

    def check_subscriptions(self, subscribed: int) -> None:
        """Raises :class:`TooManySubscriptionsError` when a client with so many subscriptions may have no more."""
        most = self._settings.max_subscriptions
        if most and subscribed >= most:
            raise TooManySubscriptionsError(f"a client may subscribe to {most} channels at most")

    def drop(self, sid: str) -> None:
        """The client has left."""
        self._clients.pop(sid, None)

    def _client(self, sid: str) -> _Client:
        client = self._clients.get(sid)
        if client is None:
            client = self._clients[sid] = _Client(self._settings)
        return client


class RequestLimits(ClientLimits):
    """The same for those who are never connected: who they are, by whatever name, is remembered for a while."""

    #: Who is remembered; those that were heard of longest ago are forgotten first.
    most_clients = 10_000

    def check_together(self, who: str, count: int) -> None:
        """``count`` events came together, and were counted as one. Raises :class:`RateLimitedError`."""
        if self._settings.max_events_per_second and count > 1:
            # Given back first: what is refused as a whole costs nothing, and waits for the right time.
            self._client(who).events.take(-1.0)
            self.check_event(who, 0, count)

    def _client(self, sid: str) -> _Client:
        client = super()._client(sid)
        # To the end of the dict, in which the oldest comes first.
        self._clients[sid] = self._clients.pop(sid)
        if len(self._clients) > self.most_clients:
            del self._clients[next(iter(self._clients))]
        return client


class AddressLimits:
    """What each address may do: connections at once, and attempts a second."""

    #: Addresses whose attempts are remembered; those that were heard of longest ago are forgotten first.
    most_addresses = 100_000

    def __init__(self, settings: Settings) -> None:
        self._most = settings.max_connections_per_address
        self._attempts_per_second = settings.max_attempts_per_second_per_address
        self._connections: dict[str, int] = {}
        self._attempts: OrderedDict[str, Bucket] = OrderedDict()

    def refusal(self, address: str) -> tuple[str, str] | None:
        """Count an attempt to connect; why it is refused, in a word and in a sentence, or None."""
        if not self.attempt(address):
            return "address_attempts", "too many attempts to connect from this address"
        if self._most and self._connections.get(address, 0) >= self._most:
            return "address_connections", "too many connections from this address"
        return None

    def attempt(self, address: str) -> bool:
        """Count an attempt to be let in; whether it may be made."""
        return not self._attempts_per_second or self._bucket(address).take()

    def opened(self, address: str) -> None:
        """A connection is open."""
        self._connections[address] = self._connections.get(address, 0) + 1

    def closed(self, address: str) -> None:
        """It is not any more."""
        left = self._connections.get(address, 0) - 1
        if left > 0:
            self._connections[address] = left
        else:
            self._connections.pop(address, None)

    def _bucket(self, address: str) -> Bucket:
        bucket = self._attempts.pop(address, None)
        if bucket is None:
            bucket = Bucket(self._attempts_per_second, self._attempts_per_second * BURST_SECONDS)
            while self._attempts:
                oldest = next(iter(self._attempts))
                if len(self._attempts) < self.most_addresses and not self._attempts[oldest].is_full():
                    break
                del self._attempts[oldest]
        self._attempts[address] = bucket
        return bucket
