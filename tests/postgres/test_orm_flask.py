"""@publishes with Flask-SQLAlchemy: ``db.Model`` and ``db.session`` in an application's requests."""

from collections.abc import Iterator
from typing import Any

import flask
import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from socketio_pg.client import Client
from socketio_pg.core.errors import InvalidChannelError
from socketio_pg.orm.hooks import publishes
from tests.support.orm import DRIVERS, OrmDatabase, orm_database
from tests.support.postgres import Cluster

db = SQLAlchemy()


@publishes("tasks:{owner}", exclude=["secret"])
class Task(db.Model):  # type: ignore[name-defined,misc]
    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]
    done: Mapped[bool] = mapped_column(default=False)
    secret: Mapped[str] = mapped_column(default="secret")


@pytest.fixture(scope="module", params=DRIVERS)
def database(request: pytest.FixtureRequest, newest_pg: Cluster) -> Iterator[OrmDatabase]:
    with orm_database(newest_pg, request.param, "orm_flask", db.metadata) as made:
        yield made


@pytest.fixture
def browser(database: OrmDatabase) -> Iterator[FlaskClient]:
    app = flask.Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = database.url
    db.init_app(app)

    @app.post("/tasks/<owner>")
    def create(owner: str) -> dict[str, Any]:
        task = Task(owner=owner)
        db.session.add(task)
        Client(db.session).notify(f"audit:{owner}", {"by": owner}, durable=True)
        db.session.commit()
        return {"id": task.id}

    @app.post("/tasks/<int:number>/done")
    def finish(number: int) -> dict[str, Any]:
        db.get_or_404(Task, number).done = True
        db.session.flush()
        if "commit" in flask.request.args:
            db.session.commit()
        return {}

    @app.errorhandler(InvalidChannelError)
    def refuse(error: InvalidChannelError) -> tuple[dict[str, str], int]:
        db.session.rollback()
        return error.to_wire(), 400

    yield app.test_client()
    with app.app_context():
        db.session.execute(sa.delete(Task))
        db.session.commit()
        db.engine.dispose()


def test_requests_publish_what_they_commit(database: OrmDatabase, browser: FlaskClient) -> None:
    created = browser.post("/tasks/ann").get_json()
    refused = browser.post("/tasks/*")
    assert (refused.status_code, refused.get_json()["code"]) == (400, "invalid_channel")
    assert browser.post(f"/tasks/{created['id']}/done").status_code == 200  # does not commit: rolled back
    assert browser.post(f"/tasks/{created['id']}/done?commit").status_code == 200
    new = {"id": created["id"], "owner": "ann", "done": False}
    common = {"schema": "public", "table": "task", "pk": {"id": created["id"]}}
    assert database.sent() == [
        ("tasks:ann", common | {"op": "INSERT", "new": new, "old": None, "changed": []}),
        ("audit:ann", {"by": "ann"}),
        ("tasks:ann", common | {"op": "UPDATE", "new": new | {"done": True}, "old": new, "changed": ["done"]}),
    ]
