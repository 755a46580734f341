"""Publishes for :class:`PubSub`: through the log or with NOTIFY, once for each id. Returns positions in the log."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from socketio_pg.core import metrics
from socketio_pg.core.channels import validate_channel
from socketio_pg.core.errors import InvalidRequestError, LogNotInstalledError, PayloadTooLargeError, SocketIOPGError
from socketio_pg.core.logs import RateLimitedLog
from socketio_pg.core.messages import MAX_NOTIFY_BYTES, check_size, encode_payload
from socketio_pg.core.meta import validate_exclude, validate_traceparent
from socketio_pg.core.publications import Publication, Published, naming_message, validate_id
from socketio_pg.core.rules import Rule
from socketio_pg.log.follower import Follower
from socketio_pg.postgres.outgoing import Outgoing, Receipt
from socketio_pg.postgres.publisher import MessagePublisher

logger = logging.getLogger("socketio_pg.publishing")
_limited_log = RateLimitedLog(logger)


class Publishing:
    """Checks messages, chooses how each is sent, and waits for their commit and their positions.

    ``has_log()`` returns whether the database has a log, or raises :class:`DatabaseUnavailableError`. ``follow()``
    starts the ``follower`` if it is not running. ``rule_of(channel)`` returns the rule for a channel, and may wait.
    ``max_payload``: see :class:`PubSub`.
    """

    #: Seconds to wait for positions in the log.
    place_timeout = 2.0

    def __init__(
        self,
        publisher: MessagePublisher,
        follower: Follower,
        has_log: Callable[[], bool],
        follow: Callable[[], None],
        rule_of: Callable[[str], Rule],
        max_payload: int,
    ) -> None:
        self._publisher = publisher
        self._follower = follower
        self._has_log = has_log
        self._follow = follow
        self._rule_of = rule_of
        self._max_payload = max_payload

    def publish(self, publication: Publication, *, wait: bool) -> Published:
        """Publish one message. See :meth:`PubSub.publish`."""
        message = self._outgoing(publication)
        with _tracing([message]):
            try:
                receipts = self._publisher.publish([message], numbered=wait)
            except LogNotInstalledError as error:
                [message] = self._without_log([publication], error)
                receipts = self._publisher.publish([message], numbered=wait)
        if wait and message.durable:
            return self._with_places([message], receipts)[0]
        return Published(message.channel, message.durable, wait, None, receipts[0].duplicate)

    def publish_together(self, publications: Sequence[Publication], *, wait: bool) -> list[Published]:
        """Publish all of them, or none. See :meth:`PubSub.publish_together`."""
        messages = self._outgoing_together(publications)
        with _tracing(messages):
            try:
                receipts = self._publisher.publish(messages, numbered=wait)
            except LogNotInstalledError as error:
                messages = self._without_log(publications, error)
                receipts = self._publisher.publish(messages, numbered=wait)
        if wait:
            return self._with_places(messages, receipts)
        found = zip(messages, receipts, strict=True)
        return [Published(one.channel, one.durable, False, None, receipt.duplicate) for one, receipt in found]

    def _without_log(self, publications: Sequence[Publication], error: LogNotInstalledError) -> list[Outgoing]:
        """Return what to send when the log was removed after this node had looked. Raises ``error`` if it is needed."""
        self._follower.doubt()
        if any(one.durable or one.id is not None for one in publications):
            raise error
        return self._outgoing_together([replace(one, durable=False) for one in publications])

    def _with_places(self, messages: Sequence[Outgoing], receipts: Sequence[Receipt]) -> list[Published]:
        """Wait for the positions of messages that are committed."""
        self._follow()
        found = list(zip(messages, receipts, strict=True))
        numbers = [receipt.number for one, receipt in found if one.durable and receipt.number is not None]
        old = {receipt.number for receipt in receipts if receipt.duplicate and receipt.number is not None}
        places = dict(zip(numbers, self._follower.places.wait(numbers, self.place_timeout, old), strict=True))
        results = []
        for message, receipt in found:
            place = None if receipt.number is None else places.get(receipt.number)
            if message.durable and place is None and not receipt.duplicate:
                metrics.unplaced.inc()
            results.append(Published(message.channel, message.durable, True, place, receipt.duplicate))
        return results

    def _outgoing_together(self, publications: Sequence[Publication]) -> list[Outgoing]:
        messages = []
        seen: set[tuple[str, str]] = set()
        for index, publication in enumerate(publications):
            with naming_message(index):
                message = self._outgoing(publication)
                if not message.durable:
                    if (message.channel, message.payload_json) in seen:
                        raise InvalidRequestError(
                            "the same message occurs twice, and NOTIFY delivers it only once in a transaction; durable "
                            "messages may be equal",
                            channel=message.channel,
                        )
                    seen.add((message.channel, message.payload_json))
                messages.append(message)
        return messages

    def _outgoing(self, publication: Publication) -> Outgoing:
        channel, durable = publication.channel, publication.durable
        validate_channel(channel)
        if publication.id is not None:
            validate_id(publication.id)
        if publication.exclude is not None:
            validate_exclude(publication.exclude)
        if publication.traceparent is not None:
            validate_traceparent(publication.traceparent)
        text = encode_payload(publication.payload)
        rule = self._rule_of(channel)
        if durable is None:
            durable = (bool(rule.durable) or len(text.encode()) > MAX_NOTIFY_BYTES) and self._has_log()
        check_size(text, self._max_payload if durable else MAX_NOTIFY_BYTES)
        size = len(text.encode())
        if rule.max_bytes is not None and size > rule.max_bytes:
            raise PayloadTooLargeError(
                f"payload has {size} bytes of UTF-8 as JSON; at most {rule.max_bytes} are allowed in this channel",
                channel=channel,
            )
        return Outgoing(
            channel, text, durable, publication.id, publication.sender, publication.traceparent, publication.exclude
        )


@contextlib.contextmanager
def _tracing(messages: Sequence[Outgoing]) -> Iterator[None]:
    """Log that traced messages were published, or why not."""
    traced = [one for one in messages if one.traceparent is not None]
    try:
        yield
    except SocketIOPGError as error:
        for one in traced[:1]:
            _limited_log(
                logging.INFO,
                "a message was not published: %s",
                error.message,
                channel=one.channel,
                code=error.code,
                traceparent=one.traceparent,
            )
        raise
    for one in traced:
        logger.debug("published", extra={"channel": one.channel, "traceparent": one.traceparent})
