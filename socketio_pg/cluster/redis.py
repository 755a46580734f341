"""The client manager of a node with Redis or Valkey as the message queue, based on python-socketio's RedisManager."""

import socket
from collections.abc import Iterator
from typing import Any

import socketio

from socketio_pg.cluster.node import ClusterManager
from socketio_pg.cluster.queue_manager import Command
from socketio_pg.core import green
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.errors import ClusterKeyError
from socketio_pg.core.sealing import Sealing

#: Socket options with which a dead connection is detected in about 15 s, on systems that support them.
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 15_000}
_REDIS_OPTIONS = {
    "socket_connect_timeout": 5.0,
    "socket_keepalive": True,
    "socket_keepalive_options": {
        getattr(socket, name): value for name, value in _KEEPALIVE.items() if hasattr(socket, name)
    },
}


class _Connections(socketio.RedisManager):  # type: ignore[misc]
    """Opens connections without retries: a publication of which only the reply was lost would arrive twice."""

    def _redis_connect(self) -> None:
        module = self._get_redis_module()
        self.redis_options["retry"] = module.retry.Retry(module.backoff.NoBackoff(), 0)
        super()._redis_connect()


class RedisCluster(ClusterManager, _Connections):
    """Logs messages that cannot be published, and drops them, even if Redis does not respond at all.

    The stock manager does so only if Redis is unreachable.
    """

    #: Seconds that publishing may take.
    publish_timeout = 5.0
    #: Seconds before the first attempt to subscribe again; doubles up to the second value.
    backoff = (0.1, 2.0)

    def __init__(self, url: str, channel: str, sealing: Sealing) -> None:
        # The driver's own timeout, too: in the doctor, which has no green threads, the other one interrupts nothing.
        options = {**_REDIS_OPTIONS, "socket_timeout": self.publish_timeout}
        super().__init__(url, channel, redis_options=options, sealing=sealing)
        # Publishing replaces its connection after a failure, while the listener waits on this one.
        self._listening = _Connections(url, channel, redis_options=dict(_REDIS_OPTIONS))

    def ping(self) -> None:
        """Check the connection. Raises OSError when Redis is unreachable or does not respond."""
        try:
            with green.timeout(self.publish_timeout):
                self._redis_connect()
                self.redis.ping()
        except (green.TimedOut, self._redis_error()) as error:
            raise OSError(str(error)) from error

    def _publish(self, data: Command) -> None:
        self.send(data)

    def send(self, data: Command) -> bool:
        """Publish a message. Return whether Redis has it; if not, that is logged."""
        try:
            with green.timeout(self.publish_timeout):
                if not self.connected:
                    self._redis_connect()
                self.redis.publish(self.channel, self._seal(self.json.dumps(data)))
                return True
        except green.TimedOut:
            self._not_published(f"no response within {self.publish_timeout:g} s")
        except (OSError, ClusterKeyError, self._redis_error()) as error:
            self._not_published(error)
        return False

    def _not_published(self, problem: object) -> None:
        self.connected = False
        super()._not_published(problem)

    def _redis_listen_with_retries(self) -> Iterator[Any]:
        # Replaces the stock method, which waits up to a minute between two attempts.
        backoff = Backoff(*self.backoff)
        failed = False
        while True:
            try:
                self._listening._redis_connect()
                self._listening.pubsub.subscribe(self.channel)
                backoff.reset()
                if failed:
                    self._receives_again()
                yield from self._listening.pubsub.listen()
            except (OSError, self._redis_error()) as error:
                self._not_heard(error)
            failed = True
            green.sleep(backoff.next())

    def _redis_error(self) -> type[Exception]:
        module = self._get_redis_module()
        return module.ValkeyError if module.__name__ == "valkey" else module.RedisError  # type: ignore[no-any-return]
