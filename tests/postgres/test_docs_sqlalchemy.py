"""The examples of docs/sqlalchemy.md run as they are written."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from tests.support.orm import orm_database
from tests.support.postgres import Cluster, in_thread

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "sqlalchemy.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_examples_send_the_documented_messages(newest_pg: Cluster) -> None:
    with orm_database(newest_pg, "psycopg", "docs_sqlalchemy", sa.MetaData()) as database:
        names: dict[str, Any] = {"__name__": "docs_sqlalchemy", "engine": database.engine}
        own, announce, classes, usage, leaving_out, rows = blocks("python")
        exec(compile(own, "own", "exec"), names)
        exec(compile(announce, "announce", "exec"), names)

        async def run() -> None:
            engine = create_async_engine(database.url)
            async with AsyncSession(engine) as session:
                await names["announce"](session)
            await engine.dispose()

        # In another thread: Playwright, used by other tests, may have left an event loop running in this one.
        in_thread(asyncio.run, run())
        assert database.sent() == [("news", {"headline": "…"})] * 2
        exec(compile(classes, "classes", "exec"), names)
        names["Base"].metadata.create_all(database.engine)
        exec(compile(usage, "usage", "exec"), names)
        sent = database.sent()
        [expected] = blocks("json")
        assert sent[-1] == ("orders:5", json.loads(expected))
        assert [channel for channel, _ in sorted(sent[:2], key=str)] == ["orders:5", "users"]
        assert dict(sent[:2])["users"]["new"] == {"id": 5, "name": "Ada"}
        exec(compile(leaving_out, "leaving_out", "exec"), names)
        with database.session() as session:
            names["ship"](session, session.get(names["Order"], 7), "abc")
        assert database.sql("SELECT meta FROM socketio_pg.outbox") == [({"exclude": "abc"},)]
        exec(compile(rows, "rows", "exec"), names)
        with database.session() as session:
            page = names["orders"](session)
        assert (len(page["rows"]), page["token"][:9]) == (1, "snapshot:")
