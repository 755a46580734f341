"""A FastAPI application that publishes in its own transactions, and streams messages to its own clients.

    pip install fastapi uvicorn asyncpg
    DATABASE_URL=postgresql:///shop SOCKETIO_PG_URL=http://127.0.0.1:3030 uvicorn fastapi_app:app

Then: curl -X POST 'http://127.0.0.1:8000/orders?customer=5', and curl -N http://127.0.0.1:8000/orders/5
"""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from socketio_pg.aio import AsyncSubscriber, publish

TABLE = (
    "CREATE TABLE IF NOT EXISTS orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer integer NOT NULL)"
)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep one connection to the server and a pool to the database, for all requests."""
    async with (
        asyncpg.create_pool(os.environ["DATABASE_URL"]) as app.state.pool,
        AsyncSubscriber(os.environ["SOCKETIO_PG_URL"], retry=True) as app.state.subscriber,
    ):
        await app.state.pool.execute(TABLE)
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/orders")
async def create_order(customer: int) -> dict[str, int]:
    """Insert an order, and publish it in the same transaction."""
    async with app.state.pool.acquire() as connection, connection.transaction():
        order = await connection.fetchval("INSERT INTO orders (customer) VALUES ($1) RETURNING id", customer)
        await publish(connection, f"orders:{customer}", {"id": order, "customer": customer})
    return {"id": order}


@app.get("/orders/{customer}")
async def follow_orders(customer: int) -> StreamingResponse:
    """Stream the orders of a customer, one JSON text a line; first the newest ten."""
    subscriber: AsyncSubscriber = app.state.subscriber
    subscription = await subscriber.subscribe(f"orders:{customer}", history=10)

    async def lines() -> AsyncIterator[str]:
        try:
            async for message in subscription:
                yield json.dumps(message["payload"]) + "\n"
        finally:  # the client has gone
            await subscriber.unsubscribe(subscription)

    return StreamingResponse(lines(), media_type="application/x-ndjson")
