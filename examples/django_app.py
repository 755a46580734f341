"""A Django application (ASGI) that publishes in its own transactions, and streams messages to its own clients.

    pip install django uvicorn
    DATABASE_URL=postgresql:///shop SOCKETIO_PG_URL=http://127.0.0.1:3030 uvicorn --lifespan off django_app:app

Then: curl -X POST 'http://127.0.0.1:8000/orders?customer=5', and curl -N http://127.0.0.1:8000/orders/5
"""

import json
import os
from collections.abc import AsyncIterator

import django
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from django.urls import path
from sqlalchemy.engine import make_url

from socketio_pg.aio import AsyncSubscriber
from socketio_pg.client import Client

address = make_url(os.environ["DATABASE_URL"])
settings.configure(
    SECRET_KEY="of the example",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": address.database,
            "USER": address.username,
            "HOST": address.host or address.query.get("host"),
            "PORT": address.port,
        }
    },
)
django.setup()

TABLE = (
    "CREATE TABLE IF NOT EXISTS orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer integer NOT NULL)"
)


def insert_order(customer: int) -> int:
    """Insert an order, and publish it in the same transaction."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("INSERT INTO orders (customer) VALUES (%s) RETURNING id", [customer])
        order: int = cursor.fetchone()[0]
        # On the driver's own connection, below Django's.
        Client(connection.connection).notify(f"orders:{customer}", {"id": order, "customer": customer}, durable=True)
    return order


async def create_order(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"id": await sync_to_async(insert_order)(int(request.GET["customer"]))})


async def follow_orders(request: HttpRequest, customer: int) -> StreamingHttpResponse:
    """Stream the orders of a customer, one JSON text a line; first the newest ten."""

    async def lines() -> AsyncIterator[str]:
        # Django has no lifespan: each stream has a connection of its own.
        async with AsyncSubscriber(os.environ["SOCKETIO_PG_URL"]) as subscriber:
            async for message in await subscriber.subscribe(f"orders:{customer}", history=10):
                yield json.dumps(message["payload"]) + "\n"

    return StreamingHttpResponse(lines(), content_type="application/x-ndjson")


urlpatterns = [path("orders", create_order), path("orders/<int:customer>", follow_orders)]

with connection.cursor() as started:
    started.execute(TABLE)
connection.close()

app = get_asgi_application()
