"""RedisManager: for programs that only emit, to servers with a Redis or Valkey as their MESSAGE_QUEUE."""

from typing import Any

import socketio
from sqlalchemy import Engine, create_engine

from socketio_pg.cluster.emitter_seal import EmitterSeal
from socketio_pg.cluster.queue_manager import Command
from socketio_pg.core.addresses import database_url
from socketio_pg.core.channels import QUEUE_CHANNEL


class RedisManager(socketio.RedisManager):  # type: ignore[misc]
    """Emits, disconnects and changes rooms over Redis, as python-socketio's manager does, but sealed. It only writes.

    ``database`` is the servers' database, a URL or an SQLAlchemy ``Engine``: it has the cluster key, and identifies the
    installation. With ``cluster_key``, the servers' setting CLUSTER_KEY, the role needs no right in it; the default is
    what the environment has. ``channel`` is the servers' MESSAGE_QUEUE_CHANNEL.

    ::

        RedisManager("redis://…", "postgresql://…").emit("news", {"id": 7}, room="readers")

    Emitting raises :class:`ConfigurationError` without the key, SQLAlchemy's errors, and logs errors of Redis.
    """

    #: The client of the Redis or Valkey library; None before the first emit and after a failure.
    redis: Any

    def __init__(
        self,
        url: str,
        database: str | Engine,
        channel: str = QUEUE_CHANNEL,
        *,
        cluster_key: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(url, channel, write_only=True, **options)
        self._seal = EmitterSeal(cluster_key)
        self._engine = _engine(database) if isinstance(database, str) else database

    def _publish(self, data: Command) -> None:
        if self._seal.due:
            with self._engine.connect() as connection:
                self._seal.refresh(connection)
        text = self._seal.seal(self.channel, self.json.dumps(data))
        for last in (False, True):
            try:
                if self.redis is None:
                    self._redis_connect()
                self.redis.publish(self.channel, text)
                return
            except Exception as error:  # the stock manager does the same: Redis and Valkey have different classes
                self.redis = None
                self._get_logger().error("publishing on Redis failed: %s%s", error, "" if last else "; retrying")


def _engine(url: str) -> Engine:
    dsn = database_url(url)

    def connect() -> Any:
        assert engine.dialect.loaded_dbapi is not None
        return engine.dialect.loaded_dbapi.connect(dsn, fallback_application_name="socketio_pg emit")

    engine = create_engine("postgresql+psycopg2://", creator=connect, pool_pre_ping=True)
    return engine
