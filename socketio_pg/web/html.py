"""Publishes HTML for pages that follow a stream with ``format=html``: htmx, Turbo, or an EventSource of their own."""

from typing import Any

from flask import render_template

from socketio_pg.client import Client
from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.streams.events import MAX_EVENT_NAME, is_event_name


def html(markup: str, event: str | None = None) -> dict[str, str]:
    """Return the payload that makes ``markup`` an event of that name in such streams, by default ``message``.

    Raises :class:`InvalidRequestError` for a name that an event cannot have.
    """
    if event is None:
        return {"html": str(markup)}
    if not is_event_name(event):
        raise InvalidRequestError(
            f"event must be 1 to {MAX_EVENT_NAME} printable characters, and none of the server's own events"
        )
    return {"event": event, "html": str(markup)}


def publish_template(connection: Any, channel: str, template: str, *, event: str | None = None, **context: Any) -> None:
    """Render a template of the Flask application, and publish it in the transaction of ``connection``.

    ``connection`` is one that :class:`~socketio_pg.client.Client` accepts. ``channel`` must be in the setting
    HTML_CHANNELS of the servers. The message goes through the log. Raises as :func:`html` and :meth:`Client.notify`.
    """
    Client(connection).notify(channel, html(render_template(template, **context), event), durable=True)
