"""Nodes that reach each other's clients over Redis or Valkey, with python-socketio's manager."""

import socket
from collections.abc import Iterator
from typing import Any

import socketio

from socketio_pg.cluster.node import ClusterManager
from socketio_pg.cluster.queue_manager import Command
from socketio_pg.core import green
from socketio_pg.core.backoff import Backoff

#: With these a cut cable is found in about 15 s, on systems that have them.
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 15_000}
_REDIS_OPTIONS = {
    "socket_connect_timeout": 5.0,
    "socket_keepalive": True,
    "socket_keepalive_options": {
        getattr(socket, name): value for name, value in _KEEPALIVE.items() if hasattr(socket, name)
    },
}


class RedisCluster(ClusterManager, socketio.RedisManager):  # type: ignore[misc]
    """Gives up on a Redis that stands still, as the stock manager does on one that is away: with a line in the log."""

    #: Seconds that publishing may take.
    publish_timeout = 5.0
    #: Seconds to the first attempt to hear Redis again; doubles up to the second value.
    backoff = (0.1, 2.0)

    def __init__(self, url: str, channel: str) -> None:
        super().__init__(url, channel, redis_options=dict(_REDIS_OPTIONS))

    def _redis_connect(self) -> None:
        # A publication that is repeated, because only its answer was lost, would arrive twice.
        module = self._get_redis_module()
        self.redis_options["retry"] = module.retry.Retry(module.backoff.NoBackoff(), 0)
        super()._redis_connect()

    def ping(self) -> None:
        """Whether it is there. Raises OSError when it is not, or does not answer."""
        try:
            with green.timeout(self.publish_timeout):
                self._redis_connect()
                self.redis.ping()
        except (green.TimedOut, self._redis_error()) as error:
            raise OSError(str(error)) from error

    def _publish(self, data: Command) -> None:
        try:
            with green.timeout(self.publish_timeout):
                if not self.connected:
                    self._redis_connect()
                self.redis.publish(self.channel, self.json.dumps(data))
        except green.TimedOut:
            self._not_published("it does not answer")
        except (OSError, self._redis_error()) as error:
            self._not_published(error)

    def _not_published(self, problem: object) -> None:
        self.connected = False
        super()._not_published(problem)

    def _redis_listen_with_retries(self) -> Iterator[Any]:
        # As the stock manager's, which waits for up to a minute.
        backoff = Backoff(*self.backoff)
        while True:
            try:
                self._redis_connect()
                self.pubsub.subscribe(self.channel)
                backoff.reset()
                yield from self.pubsub.listen()
            except (OSError, self._redis_error()) as error:
                self._not_heard(error)
            green.sleep(backoff.next())

    def _redis_error(self) -> type[Exception]:
        module = self._get_redis_module()
        return module.ValkeyError if module.__name__ == "valkey" else module.RedisError  # type: ignore[no-any-return]
