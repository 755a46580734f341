"""@publishes end to end: a program with SQLAlchemy, a server, and a Socket.IO client that receives the changes."""

import queue
import random
import threading
from collections.abc import Iterator

import psycopg2
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from socketio_pg.orm.hooks import publishes
from tests.support.clients import SocketClient
from tests.support.log import Log, wait_installed
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.server import ServerProcess

pytestmark = pytest.mark.green


class Base(DeclarativeBase):
    pass


@publishes("orders:{customer_id}")
@publishes("quick", columns=["state"], durable=False)
class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int]
    state: Mapped[str] = mapped_column(server_default="new")


@pytest.fixture(scope="module")
def log(newest_pg: Cluster) -> Iterator[Log]:
    made = Log(newest_pg, "live_orm", AUTO_INIT="1")
    wait_installed(made)
    yield made
    made.server.close()


@pytest.fixture
def engine(log: Log) -> Iterator[sa.Engine]:
    made = sa.create_engine(log.url.replace("postgresql://", "postgresql+psycopg://"))
    Base.metadata.create_all(made)
    yield made
    made.dispose()


def test_changes_of_a_session_reach_the_client(log: Log, engine: sa.Engine) -> None:
    with SocketClient(log.server.url) as client:
        position = client.call("subscribe", {"channel": "orders:5"})["position"]
        with Session(engine) as session:
            undone = Order(customer_id=5, state="undone")
            session.add(undone)
            session.flush()
            session.rollback()
            order, other = Order(customer_id=5), Order(customer_id=6)
            session.add_all([order, other])
            session.commit()
            order.state = "paid"
            session.flush()
            order.customer_id = 6
            session.commit()
        messages = [client.next("event") for _ in range(3)]
        assert {message["channel"] for message in messages} == {"orders:5"}
        payloads = [message["payload"] for message in messages]
        assert [(payload["op"], payload.get("moved", False)) for payload in payloads] == [
            ("INSERT", False), ("UPDATE", False), ("DELETE", True),
        ]  # fmt: skip
        assert payloads[0]["new"]["state"] == "new"
        assert payloads[1]["changed"] == ["state"]
        assert payloads[2]["old"] | {"id": 0} == {"id": 0, "customer_id": 5, "state": "paid"}
        assert messages[0]["position"] > position


def test_changes_are_published_without_the_log(log: Log, engine: sa.Engine) -> None:
    with SocketClient(log.server.url) as client:
        client.call("subscribe", {"channel": "quick"})
        with Session(engine) as session:
            session.add(Order(customer_id=7, state="quick"))
            session.commit()
        assert client.next("event")["payload"]["new"] == {"state": "quick"}


@pytest.mark.parametrize("order", [{}, {"PSYCOPG_FIRST": "1"}], ids=["psycopg later", "psycopg first"])
def test_waiting_query_of_the_application_stops_no_client(
    newest_pg: Cluster, channel: str, order: dict[str, str]
) -> None:
    """psycopg 3, the default of SQLAlchemy 2.1, waits in C unless it is told otherwise."""
    url = newest_pg.url()
    server = ServerProcess(
        "", app="tests.support.sqlalchemy_app:app",
        APP_DATABASE=url.replace("postgresql://", "postgresql+psycopg://"), **order,
    )  # fmt: skip
    held, lock = psycopg2.connect(url), random.getrandbits(31)
    answers: queue.Queue[tuple[int, str]] = queue.Queue()
    request = threading.Thread(target=lambda: answers.put(server.get(f"/wait/{lock}")))
    try:
        held.cursor().execute("SELECT pg_advisory_lock(%s)", (lock,))
        with SocketClient(server.url) as client:
            assert client.call("subscribe", {"channel": channel})["ok"] is True
            request.start()
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = %s::oid"
            until(lambda: newest_pg.sql(waiting, lock) == [(1,)], "the route waits in PostgreSQL")
            newest_pg.notify(channel, "1")
            assert client.next("event")["payload"] == 1
            assert answers.empty()
            held.close()
            assert answers.get(timeout=PATIENCE) == (200, "psycopg")
    finally:
        held.close()
        if request.ident is not None:
            request.join()
        server.close()
