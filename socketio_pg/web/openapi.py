"""The OpenAPI 3.1 document of `api`, with the settings' limits and the error codes of `api_errors`. Does no I/O."""

from socketio_pg.core.channels import MAX_CHANNEL_BYTES, RESERVED_PREFIX
from socketio_pg.core.config import Settings
from socketio_pg.core.cursors import MAX_POSITION
from socketio_pg.core.messages import MAX_NOTIFY_BYTES
from socketio_pg.core.publications import MAX_BATCH, MAX_ID_BYTES
from socketio_pg.log.log import DEFAULT_MESSAGES, MAX_MESSAGES
from socketio_pg.log.starts import MAX_HISTORY, MAX_TOKEN_CHARACTERS
from socketio_pg.streams.preparing import MAX_CHANNELS
from socketio_pg.version import __version__
from socketio_pg.web.openapi_control import control_paths, control_schemas
from socketio_pg.web.openapi_parts import Json, errors, json_response, object_of, query, ref

#: The reasons for `recovered: false` (docs/protocol.md, `subscribed`).
REASONS = ["trimmed", "epoch_changed", "position_unknown", "not_installed"]


def openapi(settings: Settings, authentication: str, max_bytes: int) -> Json:
    """Return the document for these settings.

    ``authentication`` is the mode in effect: "off", "optional" or "required". ``max_bytes`` limits a request's body.
    """
    security: list[Json] = {"off": [], "optional": [{}, {"token": []}], "required": [{"token": []}]}[authentication]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "socketio_pg",
            "version": __version__,
            "description": "Publish to PostgreSQL channels, and read messages from the log.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "security": security,
        "paths": {
            "/api/publish": {"post": _publish(max_bytes)},
            "/api/channels/{channel}/messages": {"get": _messages()},
            "/api/channels/{channel}/presence": {"get": _presence()},
            "/api/channels/{channel}/stream": {"get": _stream("stream", _CHANNEL)},
            "/api/stream": {"get": _stream("streamTogether", _CHANNELS)},
            "/api/tickets": {"post": _tickets()},
            "/api/openapi.json": {
                "get": {
                    "operationId": "openapi",
                    "summary": "This document",
                    "security": [],
                    "responses": {"200": json_response("The document.", {"type": "object"})} | errors(403, 503),
                }
            },
            **({} if settings.admin_token is None else control_paths(max_bytes)),
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
            | ({} if settings.admin_token is None else {"admin": {"type": "http", "scheme": "bearer"}}),
            "schemas": _schemas(settings) | ({} if settings.admin_token is None else control_schemas()),
        },
    }


def _stream(name: str, channel: Json) -> Json:
    since: Json = {
        "anyOf": [
            {"const": "earliest"},
            {"type": "string", "pattern": r"^[^:\s]+:[0-9]{1,19}$"},
            {"type": "string", "format": "date-time"},
            {"type": "string", "pattern": "^snapshot:", "maxLength": MAX_TOKEN_CHARACTERS},
        ]
    }
    begin = "Begin with the messages after this position, at this time, or that are not in this snapshot."
    return {
        "operationId": name,
        "summary": "Receive messages as Server-Sent Events",
        "description": "The response does not end. docs/sse.md describes its events. What passes by itself, such as "
        "rate_limited or database_unavailable, is told in an event of a response with the status 200 that ends.",
        "parameters": [
            channel,
            {
                "name": "Last-Event-ID",
                "in": "header",
                "schema": {"type": "string"},
                "description": "The id of the last event: continue after it. Goes before since and history.",
            },
            query("since", since, f"{begin} earliest: with all messages of the log."),
            query("last_event_id", since, "Another name for since."),
            query(
                "history",
                {"type": "integer", "minimum": 0, "maximum": MAX_HISTORY},
                "Begin with up to this many of the newest messages of each channel.",
            ),
            query("filter", {"type": "string"}, "Conditions on the payload, as JSON."),
            query("numbers", {"const": "string"}, "The numbers in payloads are strings."),
            query("format", {"enum": ["json", "html"]}, "html: only the HTML of messages that have some."),
            query("ticket", {"type": "string"}, "A ticket, for clients that cannot send a header."),
        ],
        "responses": {
            "200": {
                "description": "A stream.",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
            **errors(400, 401, 403, 429),
        },
    }


#: The parameters that name the channels of a stream.
_CHANNEL: Json = {"name": "channel", "in": "path", "required": True, "schema": {"$ref": "#/components/schemas/Channel"}}
_CHANNELS: Json = {
    "name": "channel",
    "in": "query",
    "required": True,
    "schema": {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_CHANNELS,
        "items": {"$ref": "#/components/schemas/Channel"},
    },
    "explode": True,
}


def _tickets() -> Json:
    return {
        "operationId": "tickets",
        "summary": "Get a ticket for streams",
        "description": "An EventSource cannot send a token, which must not be in an address either.",
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": object_of({"channels": _CHANNELS["schema"]})},
            },
        },
        "responses": {
            "200": json_response(
                "The ticket, and the seconds for which it can be used.",
                object_of({"ticket": {"type": "string"}, "expires_in": {"type": "integer"}}),
            ),
            **errors(400, 401, 403, 408, 411, 413, 415, 429, 500, 503),
        },
    }


def _publish(max_bytes: int) -> Json:
    return {
        "operationId": "publish",
        "summary": "Publish a message, or several in one transaction",
        "description": "The server answers after the commit. It publishes several messages all together or not at all.",
        "parameters": [
            {
                "name": "traceparent",
                "in": "header",
                "schema": {"type": "string"},
                "description": "That of W3C Trace Context, for messages without one of their own. Ignored if invalid.",
            }
        ],
        "requestBody": {
            "required": True,
            "description": f"At most {max_bytes} bytes, with a Content-Length.",
            "content": {"application/json": {"schema": {"oneOf": [ref("Publication"), ref("Publications")]}}},
        },
        "responses": {
            "200": json_response("Published.", {"oneOf": [ref("Published"), ref("PublishedTogether")]}),
            **errors(400, 401, 403, 408, 411, 413, 415, 429, 500, 503),
        },
    }


def _messages() -> Json:
    position = {"type": "integer", "minimum": 0, "maximum": MAX_POSITION}
    return {
        "operationId": "messages",
        "summary": "Read messages of the log",
        "description": "The messages after a position, or the newest; with neither, only the log's current position.",
        "parameters": [
            {"name": "channel", "in": "path", "required": True, "schema": ref("Channel")},
            query(
                "since",
                {
                    "anyOf": [
                        {"type": "string", "pattern": r"^[^:\s]+:[0-9]{1,19}$"},
                        {"type": "string", "format": "date-time"},
                        {"type": "string", "pattern": "^snapshot:", "maxLength": MAX_TOKEN_CHARACTERS},
                        position,
                    ]
                },
                "The messages after this position: EPOCH:POSITION, or a position together with epoch; those logged at "
                "this time or later; or those that a token of the SQL function snapshot() does not have. Not together "
                "with history.",
            ),
            query("epoch", {"type": "string", "minLength": 1}, "The log's id, if since is only a position."),
            query(
                "history",
                {"type": "integer", "minimum": 0, "maximum": MAX_HISTORY},
                "Begin with up to this many of the newest messages.",
            ),
            query(
                "limit",
                {"type": "integer", "minimum": 1, "maximum": MAX_MESSAGES, "default": DEFAULT_MESSAGES},
                "Maximum number of messages in the answer.",
            ),
        ],
        "responses": {"200": json_response("Messages.", ref("Messages")), **errors(400, 401, 403, 429, 500, 503)},
    }


def _presence() -> Json:
    return {
        "operationId": "presence",
        "summary": "Read who is in a channel",
        "description": "docs/presence.md describes members.",
        "parameters": [
            {"name": "channel", "in": "path", "required": True, "schema": ref("Channel")},
            query("count", {"type": "string"}, "Return only the number of members."),
        ],
        "responses": {"200": json_response("Members.", ref("Presence")), **errors(400, 401, 403, 429, 500, 503)},
    }


def _schemas(settings: Settings) -> Json:
    channel = ref("Channel")
    position = {"type": "integer", "minimum": 0, "maximum": MAX_POSITION}
    identifier = {
        "type": ["string", "null"],
        "minLength": 1,
        "maxLength": MAX_ID_BYTES,
        "pattern": r"^[^\x00-\x1f\x7f-\x9f]*$",
        "description": f"At most {MAX_ID_BYTES} bytes of UTF-8. "
        "The same id on a channel within five minutes is published once.",
    }
    chosen = {
        "exclude": {
            "type": ["string", "null"],
            "minLength": 1,
            "maxLength": 64,
            "pattern": "^[!-~]*$",
            "description": "The Socket.IO id of a client that does not get the message.",
        },
        "traceparent": {
            "type": ["string", "null"],
            "pattern": "^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$",
            "description": "That of W3C Trace Context. It comes out at the event.",
        },
    }
    wait = {"type": ["boolean", "null"], "description": "false: answer after the commit, without positions."}
    return {
        "Channel": {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_CHANNEL_BYTES,
            "pattern": rf"^(?!{RESERVED_PREFIX})(?!\s)[^*\x00-\x1f\x7f-\x9f]*(?<!\s)$",
            "description": f"At most {MAX_CHANNEL_BYTES} bytes of UTF-8.",
        },
        "Publication": {
            "type": "object",
            "required": ["channel", "payload"],
            "properties": {
                "channel": channel,
                "payload": {
                    "description": "Any JSON value. As compact JSON at most "
                    f"{MAX_NOTIFY_BYTES} bytes with NOTIFY, {settings.max_payload} through the log."
                },
                "durable": {
                    "type": ["boolean", "null"],
                    "description": "true: through the log; false: with NOTIFY; missing: the log if it is installed.",
                },
                "id": identifier,
                **chosen,
                "wait": wait,
                "messages": False,
            },
        },
        "Publications": {
            "type": "object",
            "required": ["messages"],
            "properties": {
                "messages": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_BATCH,
                    # Unlike Publication, an item of the list may have a field `messages`: the server ignores it.
                    "items": {
                        "type": "object",
                        "required": ["channel", "payload"],
                        "properties": {
                            "channel": channel,
                            "payload": {},
                            "durable": {"type": ["boolean", "null"]},
                            "id": identifier,
                            **chosen,
                        },
                    },
                    "description": "Two equal messages must both be durable.",
                },
                "wait": wait,
                "channel": False,
                "payload": False,
            },
        },
        "Published": object_of(
            {"channel": channel},
            {
                "epoch": {"type": ["string", "null"]},
                "position": {
                    "type": ["integer", "null"],
                    "minimum": 0,
                    "maximum": MAX_POSITION,
                    "description": "Its place in the log; null: not known yet. Missing: NOTIFY, or wait is false.",
                },
                "duplicate": {"const": True, "description": "The id was published before; nothing is published."},
            },
        ),
        "PublishedTogether": object_of(
            {
                "published": {
                    "type": "integer",
                    "minimum": 0,
                    "maximum": MAX_BATCH,
                    "description": "The number of messages without the duplicates.",
                },
                "messages": {
                    "type": "array",
                    "items": ref("Published"),
                    "minItems": 1,
                    "maxItems": MAX_BATCH,
                    "description": "The answer to each message, in the order of the request.",
                },
            }
        ),
        "Message": object_of(
            {
                "channel": channel,
                "payload": {"description": "Any JSON value."},
                "position": position,
                "published_at": {"type": "string", "format": "date-time"},
            },
            {
                "from": {
                    "type": "object",
                    "minProperties": 1,
                    "description": "The client that has published it, with the claims of FROM_CLAIMS.",
                },
                "traceparent": {"type": "string", "description": "That of its publisher."},
            },
        ),
        "Presence": object_of(
            {"channel": channel, "count": {"type": "integer", "minimum": 0}},
            {
                "members": {
                    "type": "array",
                    "items": ref("Member"),
                    "description": f"Missing if there are more than {settings.presence_max}, and with count.",
                },
                "stale": {"const": True, "description": "The database cannot be reached: the last known members."},
            },
        ),
        "Member": object_of(
            {
                "key": {"type": "string"},
                "metas": {
                    "type": "array",
                    "items": object_of(
                        {
                            "ref": {"type": "string"},
                            "client": {"type": "string", "description": "The id of the connection."},
                            "state": {"description": "Any JSON value, set by the client."},
                            "joined_at": {"type": "string", "format": "date-time"},
                        }
                    ),
                },
            },
            {"anonymous": {"const": True}},
        ),
        "Messages": object_of(
            {
                "channel": channel,
                "messages": {"type": "array", "items": ref("Message"), "maxItems": MAX_MESSAGES},
                "more": {"type": "boolean", "description": "More messages are available now."},
            },
            {
                "epoch": {"type": "string", "description": "Missing if there is no log."},
                "position": position | {"description": "The next since: the answer has no messages after it."},
                "next": {"type": "string", "description": "The since of the next page; missing if there is no log."},
                "recovered": {
                    "type": "boolean",
                    "description": "With since: whether all messages after it follow.",
                },
                "reason": {"enum": [*REASONS, "snapshot_unknown"], "description": "With recovered: false."},
            },
        ),
    }
