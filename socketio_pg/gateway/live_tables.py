"""Live tables: subscribes clients to the rows of watched tables, and sends them the changes. docs/live-tables.md.

`tables` reads the rows and finds what clients get; `live_subscription` is one client's subscription.
"""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from socketio_pg.core import green, metrics
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.channels import PERMISSIONS_CHANNEL
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import (
    DatabaseUnavailableError,
    EndedByServerError,
    FilterTooExpensiveError,
    ForbiddenError,
    InvalidRequestError,
    LogNotInstalledError,
    RateLimitedError,
    SocketIOPGError,
    TooManySubscriptionsError,
)
from socketio_pg.core.messages import EncodedMessage
from socketio_pg.gateway.limits import Bucket, ClientLimits
from socketio_pg.gateway.live_rights import LiveRights
from socketio_pg.gateway.live_subscription import LiveSubscription, event_body
from socketio_pg.gateway.replays import Replays
from socketio_pg.log.starts import LogPosition, Start, requested_start
from socketio_pg.postgres.listener import NotifyGap
from socketio_pg.protocol.answers import Answer
from socketio_pg.protocol.fanout import Manager
from socketio_pg.pubsub.filters import INVALID_STEPS, Filter, parse_filter
from socketio_pg.pubsub.hub import UnknownSubscriberError
from socketio_pg.pubsub.matching import FilterCost
from socketio_pg.pubsub.pubsub import PubSub
from socketio_pg.tables.changes import Event
from socketio_pg.tables.checks import RowChecks
from socketio_pg.tables.definition import Definition
from socketio_pg.tables.feed import Feed, Receiver
from socketio_pg.tables.loading import Loader, Wanted
from socketio_pg.tables.reading import Identity, Query, TableReader
from socketio_pg.tables.requests import Place, requested_limit, requested_order, requested_place
from socketio_pg.tables.views import Form, View

logger = logging.getLogger("socketio_pg.tables")


class LiveTables(Receiver):
    """The live tables of one node's clients. ``replays`` takes turns between the replays of a client."""

    #: Reads of rows that a client may cause, per second; as many together as it may have live tables.
    reads_per_second = 1.0
    #: Seconds between two snapshots that a subscription gets without having asked; doubles up to the second value.
    restart_pause = (0.5, 10.0)

    def __init__(
        self,
        settings: Settings,
        manager: Manager,
        pubsub: PubSub,
        replays: Replays,
        rights: LiveRights,
        limits: ClientLimits,
    ) -> None:
        self._settings = settings
        self._manager = manager
        self._log = pubsub.log
        self._pubsub = pubsub
        self._replays = replays
        self._rights = rights
        self._limits = limits
        self._reader = TableReader(pubsub.database, settings.live_table_rows, settings.live_table_bytes)
        self._checks = RowChecks(pubsub.database, settings.permission_timeout)
        self._loader = Loader(self._reader, self._feed, settings.send_buffer_bytes // 8)
        self._feeds: dict[tuple[str, str, bool], Feed] = {}
        self._subscriptions: dict[str, dict[Place, LiveSubscription]] = {}
        #: Those whose first rows are being read.
        self._beginning: set[LiveSubscription] = set()
        self._reads: dict[str, Bucket] = {}
        self._rechecking = green.Worker()
        if settings.live_tables:
            pubsub.add_receiver(self)

    def start(self) -> None:
        """Check privileges from time to time. Call it after a fork."""
        self._reader.start()
        self._checks.start()
        if self._settings.live_tables and self._settings.permission_recheck_seconds:
            self._rechecking.start(self._recheck_regularly)

    def stop(self) -> None:
        """Stop all green threads and close the connections."""
        self._rechecking.stop()
        for feed in self._feeds.values():
            feed.stop()
        self._feeds.clear()
        self._reader.stop()
        self._checks.stop()

    def has(self, sid: str) -> bool:
        """Return whether a client has a live table."""
        return sid in self._subscriptions

    @property
    def count(self) -> int:
        """The number of subscriptions of all clients."""
        return sum(map(len, self._subscriptions.values()))

    def count_of(self, sid: str) -> int:
        """Return the number of a client's subscriptions: it may have several of one table."""
        return len(self._subscriptions.get(sid, ()))

    def describe(self, sid: str) -> list[dict[str, Any]]:
        """Return a client's subscriptions: ``table``, ``id`` if it has one, and ``filter`` as JSON or None."""
        found = []
        for place, subscription in self._subscriptions.get(sid, {}).items():
            filter = subscription.wanted.query.filter
            found.append({**place.to_wire(), "filter": None if filter is None else filter.to_wire()})
        return found

    def names(self, sid: str) -> list[str]:
        """Return the names of a client's live tables."""
        return sorted({place.table for place in self._subscriptions.get(sid, ())})

    def end(self, sid: str, matches: Callable[[str], bool]) -> int:
        """End the live tables of a client whose channel matches, as the application says. Return their number."""
        of_client = self._subscriptions.get(sid, {}).values()
        found = [one for one in of_client if one.shown is not None and matches(one.shown.table.channel)]
        for subscription in found:
            self._end(subscription, EndedByServerError("the server has ended this subscription"))
        return len(found)

    # -- requests ------------------------------------------------------------------------------------------------------

    def subscribe(self, sid: str, request: dict[str, Any]) -> Answer:
        place = requested_place(request)
        if self._pubsub.position() is None:
            raise LogNotInstalledError("live tables need the log: run 'socketio-pg init'")
        self._rights.require_table(place.table)
        self._check_count(sid, place)
        claims, identity = self._rights.claims(sid), self._rights.identity(sid)
        connection = self._manager.eio_sid_from_sid(sid, "/")
        table = self._loader.define(place.table)
        self._rights.require(sid, table)
        numbers = request.get("numbers")
        if numbers not in (None, "string"):
            raise InvalidRequestError("numbers must be 'string', or null")
        query = Query(
            self._filter(sid, request.get("where")),
            requested_order(request),
            requested_limit(request, self._settings.live_table_rows),
        )
        subscription = LiveSubscription(
            self._manager, sid, Wanted(Form(place, numbers is not None), query), self._restart, self._end
        )
        self._beginning.add(subscription)
        try:
            told = self._begin(subscription, table, identity, requested_start(request))
            # Nothing waits from here: the client may have left, got new claims, or subscribed to more in the meantime.
            if self._manager.eio_sid_from_sid(sid, "/") != connection:
                raise UnknownSubscriberError(sid)  # it has recovered its session with another connection
            if self._rights.claims(sid) is not claims:
                subscription.outdated = "claims_changed"
            self._check_count(sid, place)
        except BaseException:
            # Not all of `_discard`: an earlier subscription of the same name stays.
            subscription.ended = True
            subscription.halt()
            self._drop_unused()
            raise
        finally:
            self._beginning.discard(subscription)
        sequence = subscription.sequence
        assert sequence is not None
        former = self._subscriptions.get(sid, {}).get(place)
        if former is not None:
            self._discard(former)
        self._subscriptions.setdefault(sid, {})[place] = subscription
        body = {**place.to_wire(), **subscription.description(sequence), **told}
        if sequence.count is None:
            del body["complete"]
        else:
            body["rows"] = sequence.count
        if subscription.outdated is not None:
            self._restart(subscription, subscription.outdated)
            self._require_soon(subscription, table)
        then = functools.partial(self._replays.send, sid, subscription.channel, subscription)
        return Answer("subscribed", body, then)

    def _begin(
        self, subscription: LiveSubscription, table: Definition, identity: Identity, start: Start
    ) -> dict[str, Any]:
        """Begin with the rows, or after ``start``. Return what the client is told about that. Waits."""
        told: dict[str, Any] = {}
        sid = subscription.sid
        if start is not None:
            if not isinstance(start, LogPosition):
                raise InvalidRequestError("since must be a position of the log")
            shown = self._loader.show(subscription.wanted, table, identity)
            if shown.rights.checked:
                after, told = None, {"recovered": False, "reason": "row_security"}
            else:
                after, told = self._log.find_start(table.channel, start)
            if after is not None:
                resumed = self._loader.resume(shown, self._log.epoch, after, self._charged(sid, subscription))
                subscription.begin(shown, resumed, None)
                self._keep(resumed.feed)
        if subscription.sequence is None:
            self._count_read(sid)
            self._load(subscription, identity, None)
        return told

    def unsubscribe(self, sid: str, request: dict[str, Any]) -> Answer:
        place = requested_place(request)
        subscription = self._subscriptions.get(sid, {}).get(place)
        if subscription is not None:
            self._discard(subscription)
        return Answer("unsubscribed", place.to_wire())

    def drop(self, sid: str) -> None:
        """Forget a client that has left."""
        self._reads.pop(sid, None)
        for subscription in list(self._subscriptions.get(sid, {}).values()):
            self._discard(subscription)

    def renew(self, sid: str) -> None:
        """Apply new claims of a client to its subscriptions."""
        for subscription in list(self._subscriptions.get(sid, {}).values()):
            shown = subscription.shown
            try:
                identity = self._rights.identity(sid)
            except SocketIOPGError as error:
                self._end(subscription, error)
                continue
            same = shown is not None and shown.identity.role == identity.role
            if (
                shown is None
                or subscription.restarting  # the rows that are being read may be those of the former claims
                or not same
                or (shown.rights.checked and shown.identity != identity)
            ):
                self._restart(subscription, "claims_changed")
            if shown is not None:
                self._require_soon(subscription, shown.table)

    def _require_soon(self, subscription: LiveSubscription, table: Definition) -> None:
        """Check the permission for a table's channel with the client's new claims."""
        if self._settings.authorization != "rls":
            green.run_soon(self._require_again, subscription, table)

    def _require_again(self, subscription: LiveSubscription, table: Definition) -> None:
        try:
            self._rights.require(subscription.sid, table)
        except ForbiddenError as error:
            self._end(subscription, error)
        except SocketIOPGError:
            return  # the periodic check asks again

    def _count_read(self, sid: str) -> None:
        """Count a read of rows. Raises :class:`RateLimitedError`."""
        bucket = self._reads.get(sid)
        if bucket is None:
            bucket = self._reads[sid] = Bucket(self.reads_per_second, self._settings.live_tables_per_client)
        if not bucket.take():
            error = RateLimitedError("the client reads the rows of live tables too often")
            error.retry_after = bucket.seconds_until()
            raise error

    def _check_count(self, sid: str, place: Place) -> None:
        of_client = self._subscriptions.get(sid, {})
        most = self._settings.live_tables_per_client
        if place not in of_client and len(of_client) >= most:
            raise TooManySubscriptionsError(f"a client may subscribe to at most {most} live tables")

    def _filter(self, sid: str, value: object) -> Filter | None:
        if not value:
            return parse_filter(value)
        self._limits.check_new_filter(sid)
        steps = INVALID_STEPS
        try:
            filter = parse_filter(value)
            steps = 0 if filter is None else filter.parsing_steps
            return filter
        finally:
            self._limits.spend_on_filters(sid, steps)

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _load(self, subscription: LiveSubscription, identity: Identity, reason: str | None) -> None:
        """Read the rows of a subscription, and begin with them. Waits; raises when it cannot have them."""
        charge = self._charged(subscription.sid, subscription)
        for _ in range(5):
            table = self._loader.define(subscription.wanted.place.table)
            shown = self._loader.show(subscription.wanted, table, identity)
            sequence = self._loader.load(subscription.wanted, shown, charge)
            if sequence is not None and subscription.begin(shown, sequence, reason):
                if self._keep(sequence.feed):
                    return
                subscription.halt()
        raise DatabaseUnavailableError("the table changes too often: retry")

    def _restart(self, subscription: LiveSubscription, reason: str) -> None:
        """Send a subscription its rows again."""
        if subscription.restarting:
            subscription.outdated = reason
        elif not subscription.ended:
            metrics.live_table_restarts.labels(reason).inc()
            subscription.restarting = True
            subscription.halt()
            green.run_soon(self._load_again, subscription, reason)

    def _load_again(self, subscription: LiveSubscription, reason: str) -> None:
        backoff = Backoff(*self.restart_pause)
        while not subscription.ended:
            green.sleep(subscription.restart_in())
            subscription.outdated = None
            try:
                self._load(subscription, self._rights.identity(subscription.sid), reason)
            except DatabaseUnavailableError:
                green.sleep(backoff.next())
                continue
            except UnknownSubscriberError:
                return
            except SocketIOPGError as error:
                self._end(subscription, error)
                return
            except Exception:
                logger.exception("a live table failed")
                self._end(subscription, SocketIOPGError("the server failed to send this table"))
                return
            if subscription.outdated is None:
                break
            subscription.halt()
            reason = subscription.outdated
        subscription.restarting = False
        if subscription.ended:
            subscription.halt()
        else:
            self._replays.send(subscription.sid, subscription.channel, subscription)

    def _end(self, subscription: LiveSubscription, error: SocketIOPGError) -> None:
        """End a subscription, and tell the client why."""
        if not subscription.ended:
            self._discard(subscription)
            subscription.tell_end(error)

    def _discard(self, subscription: LiveSubscription) -> None:
        subscription.ended = True
        sequence = subscription.sequence
        subscription.halt()
        self._replays.discard(subscription.sid, subscription.channel)
        of_client = self._subscriptions.get(subscription.sid, {})
        if of_client.get(subscription.wanted.place) is subscription:
            del of_client[subscription.wanted.place]
            if not of_client:
                del self._subscriptions[subscription.sid]
        if sequence is not None:
            self._drop_unused()

    def _charged(self, sid: str, subscription: LiveSubscription) -> Callable[[Filter, int], None]:
        return lambda filter, steps: self._charge(subscription, steps)

    def _charge(self, subscription: LiveSubscription, steps: int) -> None:
        if not subscription.ended and not self._limits.spend_on_filters(subscription.sid, steps):
            metrics.expensive_filters.inc()
            error = FilterTooExpensiveError("the filter costs too much: subscribe with a cheaper one")
            green.run_soon(self._end, subscription, error)

    # -- feeds ---------------------------------------------------------------------------------------------------------

    def _feed(self, table: Definition, checked: bool) -> Feed:
        key = (table.name, table.version, checked)
        feed = self._feeds.get(key)
        if feed is None:
            feed = self._feeds[key] = Feed(table, self._log, self._checks if checked else None, self)
        return feed

    def _keep(self, feed: Feed) -> bool:
        """Keep a feed that has got a user. Return False if another one has taken its place in the meantime."""
        return self._feeds.setdefault((feed.table.name, feed.table.version, feed.checked), feed) is feed

    def _drop_unused(self) -> None:
        for key, feed in list(self._feeds.items()):
            if not feed.users and not feed.loading:
                del self._feeds[key]
                # Not here: a feed that ends its last subscription would end before it tells the client.
                green.run_soon(self._stop_unused, feed)

    def _stop_unused(self, feed: Feed) -> None:
        if not feed.users and not feed.loading:  # a client may have got its rows in the meantime
            feed.stop()

    def receive_messages(self, messages: Sequence[EncodedMessage]) -> None:
        """Wake the feeds of tables that have changed: they read the log themselves."""
        if not self._feeds or messages[0].position is None:
            return
        channels = {message.channel for message in messages}
        if PERMISSIONS_CHANNEL in channels:
            for message in messages:
                if message.channel == PERMISSIONS_CHANNEL:
                    green.run_soon(self._recheck, orjson.loads(message.payload_json) or None, asked=True)
        for feed in self._feeds.values():
            if feed.table.channel in channels or feed.waiting:
                feed.wake()

    def charge(self, costs: Sequence[FilterCost]) -> None:
        """Live tables have filters of their own."""

    def receive_gap(self, gap: NotifyGap) -> None:
        """Live tables use the log only."""

    def receive_log_gap(self, reason: str) -> None:
        """Let the feeds find that messages are missing."""
        for feed in self._feeds.values():
            feed.lose(reason)

    def receive_trims(self, trims: Mapping[str, int]) -> None:
        """Let the feeds of these channels find that messages are missing."""
        for feed in self._feeds.values():
            if feed.table.channel in trims:
                feed.lose("trimmed")

    def deliver(self, feed: Feed, events: Mapping[View, Sequence[Event]], before: int) -> None:
        found: list[tuple[Sequence[str], dict[str, Any]]] = []
        for view, of_view in events.items():
            for room in list(view.rooms.values()):
                for sid in self._manager.lagging(room, self._settings.send_buffer_bytes // 4):
                    self._follow_slowly(view, sid, feed, before)
            for form, room in view.rooms.items():
                found += [((room,), event_body(form, event)) for event in of_view]
        if found:
            self._manager.emit_in_order("event", found, apart=True)

    def _follow_slowly(self, view: View, sid: str, feed: Feed, before: int) -> None:
        """Let a client that reads slowly follow at its own speed."""
        subscription = next((member for member in _members(view) if member.sid == sid), None)
        if subscription is None or subscription.shown is None:
            return
        shown = subscription.shown
        if shown.rights.checked:
            self._restart(subscription, "lagging")
            return
        subscription.halt()
        sequence = self._loader.resume(shown, feed.epoch, before, self._charged(sid, subscription))
        subscription.begin(shown, sequence, None)
        green.run_soon(self._replays.send, sid, subscription.channel, subscription)

    def restart(self, view: View, reason: str) -> None:
        for member in _members(view):
            self._restart(member, reason)

    def fail(self, view: View, error: SocketIOPGError) -> None:
        for member in _members(view):
            self._end(member, error)

    def charge_view(self, view: View, filter: Filter, steps: int) -> None:
        for member in _members(view):
            self._charge(member, steps)

    # -- rechecks ------------------------------------------------------------------------------------------------------

    def _recheck_regularly(self) -> None:
        while True:
            green.sleep(self._settings.permission_recheck_seconds)
            try:
                self._recheck(None, asked=False)
            except Exception:  # a bug: privileges must still be checked the next time
                logger.exception("checking the rights of live tables again failed")

    def _recheck(self, channel: str | None, *, asked: bool) -> None:
        """Check privileges and definitions. ``asked``: by socketio_pg.recheck(), policies may read other data now."""
        subscriptions = [
            one
            for of_client in list(self._subscriptions.values())
            for one in list(of_client.values())
            if channel is None or f"table:{one.wanted.place.table}" == channel
        ]
        if asked:
            for beginning in self._beginning:
                beginning.outdated = beginning.outdated or "recheck"
        if subscriptions or self._beginning:
            self._loader.forget()
        for subscription in subscriptions:
            if asked and subscription.restarting:
                subscription.outdated = subscription.outdated or "recheck"
            shown = subscription.shown
            if shown is None or subscription.ended or subscription.restarting:
                continue
            try:
                table = self._loader.define(subscription.wanted.place.table)
                self._rights.require(subscription.sid, table)
                now = self._loader.show(subscription.wanted, table, shown.identity)
            except DatabaseUnavailableError:
                continue  # the last decision allowed it
            except UnknownSubscriberError:
                continue
            except SocketIOPGError as error:
                self._end(subscription, error)
                continue
            if subscription.shown is not shown:
                continue
            if table.version != shown.table.version or now.rights != shown.rights:
                self._restart(subscription, "definition_changed")
            elif asked and now.rights.checked:
                self._restart(subscription, "recheck")


def _members(view: View) -> list[LiveSubscription]:
    return [member for member in view.members if isinstance(member, LiveSubscription)]
