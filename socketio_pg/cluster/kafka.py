"""The client manager of a node with a Kafka topic as the message queue, based on python-socketio's KafkaManager."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import socketio

from socketio_pg.cluster.node import ClusterManager
from socketio_pg.cluster.queue_manager import Command
from socketio_pg.core import green
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.errors import ClusterKeyError, PayloadTooLargeError
from socketio_pg.core.sealing import Sealing


class _LaterKafka(socketio.KafkaManager):  # type: ignore[misc]
    """Connects on first use, not when it is created: the broker may be unreachable then."""

    def __init__(self, url: str, channel: str) -> None:
        super(socketio.KafkaManager, self).__init__(channel=channel)
        self.kafka_urls = url.removeprefix("kafka://").split(",")


class KafkaCluster(ClusterManager, _LaterKafka):
    """Logs messages that cannot be published, and drops them, as :class:`RedisCluster` does."""

    #: Seconds that publishing may take.
    publish_timeout = 5.0
    #: Seconds before the first attempt to reconnect the consumer; doubles up to the second value.
    backoff = (0.1, 2.0)

    def __init__(self, url: str, channel: str, sealing: Sealing) -> None:
        super().__init__(url, channel, sealing=sealing)
        self._kafka = importlib.import_module("kafka")
        self._producer: Any = None
        self._connecting = green.Lock()

    def _publish(self, data: Command) -> None:
        self.send(data)

    def send(self, data: Command) -> bool:
        """Publish a message. Return whether Kafka has it; if not, that is logged.

        Raises :class:`PayloadTooLargeError`.
        """
        try:
            # As bytes: the stock manager passes a string, which kafka-python does not accept.
            value = self._seal(self.json.dumps(data)).encode()
            with green.timeout(self.publish_timeout):
                with self._connecting:
                    if self._producer is None:
                        self._producer = self._kafka.KafkaProducer(bootstrap_servers=self.kafka_urls)
                # Kafka keeps the order within a partition only.
                self._producer.send(self.channel, value=value, partition=0).get()
                return True
        except self._kafka.errors.MessageSizeTooLargeError as error:
            raise PayloadTooLargeError(f"the message is too large for Kafka: {error}") from error
        except (green.TimedOut, OSError, ClusterKeyError, self._kafka.errors.KafkaError) as error:
            self._not_published(error)
        return False

    def _kafka_listen(self) -> Iterator[Any]:
        backoff = Backoff(*self.backoff)
        failed = False
        while True:
            try:
                consumer = self._kafka.KafkaConsumer(
                    self.channel,
                    bootstrap_servers=self.kafka_urls,
                    # Seconds until a topic is noticed that is created, or becomes available again, later.
                    metadata_max_age_ms=5000,
                )
                with contextlib.closing(consumer):
                    backoff.reset()
                    if failed:
                        self._receives_again()
                    yield from consumer
            except (OSError, self._kafka.errors.KafkaError) as error:
                self._not_heard(error)
            failed = True
            green.sleep(backoff.next())
