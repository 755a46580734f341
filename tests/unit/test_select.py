"""The selection of the client manager from MESSAGE_QUEUE."""

from typing import Any

import pytest

from socketio_pg.cluster.postgres import PostgresCluster
from socketio_pg.cluster.redis import RedisCluster
from socketio_pg.cluster.select import Cluster
from socketio_pg.core import parsers
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import ConfigurationError
from socketio_pg.core.seal import Seal
from socketio_pg.core.sealing import Sealing
from socketio_pg.protocol import fanout
from socketio_pg.pubsub.pubsub import PubSub


@pytest.fixture
def pubsub() -> PubSub:
    return PubSub(dsn="postgresql://127.0.0.1:1/nowhere")


@pytest.mark.parametrize(
    ("setting", "kind"),
    [
        (None, fanout.Manager), ("postgres", PostgresCluster), ("redis://h:1/0", RedisCluster),
        ("rediss://h:1", RedisCluster), ("redis+sentinel://a:1,b:2/0/name", RedisCluster),
    ],
)  # fmt: skip
def test_setting_selects_the_manager(pubsub: PubSub, setting: str | None, kind: type) -> None:
    """It does not connect, because it is created when the application is imported."""
    assert type(Cluster(Settings(message_queue=setting), Sealing(Seal())).create_manager(pubsub)) is kind
    assert setting is None or parsers.message_queue(setting) == setting


@pytest.mark.parametrize(
    ("setting", "package"), [("valkey://h", "valkey"), ("valkeys://h", "valkey"), ("kafka://h:9092", "kafka-python")]
)
def test_missing_package_is_reported(setting: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=rf"run pip install '{package}\W"):
        Cluster(Settings(message_queue=parsers.message_queue(setting)), Sealing(Seal()))


@pytest.mark.parametrize("value", ["amqp://h", "redis", "redis:/h", "", "http://h", 7, None])
def test_invalid_setting_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"'postgres', or an address|non-empty"):
        parsers.message_queue(value)
