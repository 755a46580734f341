"""What is counted, for Prometheus. Names and labels after its conventions; the values of a label are few and known."""

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

REGISTRY = CollectorRegistry()

#: By ``reason``: draining, too_many_connections, address_connections, address_attempts, or the code of a CONNECT_ERROR.
refused_connections = Counter(
    "socketio_pg_refused_connections", "Connections that were not let in.", ["reason"], registry=REGISTRY
)
#: By ``code``: docs/protocol.md, "Error codes".
errors = Counter(
    "socketio_pg_errors", "Requests of clients that were answered with an error.", ["code"], registry=REGISTRY
)
#: By ``reason``: expired, idle_timeout, rate_limited, connect_timeout, slow_consumer.
cut_off = Counter("socketio_pg_cut_off", "Clients that the server has disconnected.", ["reason"], registry=REGISTRY)


def render() -> tuple[bytes, str]:
    """All of it as text, and its content type."""
    return generate_latest(REGISTRY), CONTENT_TYPE_PLAIN_0_0_4
