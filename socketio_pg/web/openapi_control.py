"""The part of the OpenAPI document about `web/control`: what exists with the setting ADMIN_TOKEN."""

from socketio_pg.control.control import DEFAULT_CONNECTIONS, MAX_CONNECTIONS, MAX_SID, MAX_SUB
from socketio_pg.core.channels import MAX_CHANNEL_BYTES
from socketio_pg.web.openapi_parts import Json, errors, json_response, object_of, query, ref


def control_paths(max_bytes: int) -> Json:
    """Return the operations of `web/control`."""
    text: Json = {"type": "string", "minLength": 1, "maxLength": MAX_SUB}
    user: Json = {"name": "sub", "in": "path", "required": True, "schema": text, "description": "The claim sub."}
    sid: Json = {"type": "string", "minLength": 1, "maxLength": MAX_SID}
    channel: Json = {
        "name": "channel",
        "in": "query",
        "required": True,
        "schema": {"type": "string", "minLength": 1, "maxLength": MAX_CHANNEL_BYTES},
        "description": "A channel, or a pattern with *, which matches any characters.",
    }

    def operation(id: str, summary: str, parameters: list[Json], answer: str = "Done", *statuses: int) -> Json:
        responses = {"200": json_response(f"{answer}.", ref(answer)), **errors(400, 401, 403, 429, 500, 503)}
        return {
            "operationId": id,
            "summary": summary,
            "security": [{"admin": []}],
            "parameters": parameters,
            "responses": responses | errors(*statuses),
        }

    send = operation("sendToUser", "Send the event direct to a user", [user], "Done", 408, 411, 413, 415)
    send["requestBody"] = {
        "required": True,
        "description": f"At most {max_bytes} bytes, with a Content-Length.",
        "content": {"application/json": {"schema": object_of({"payload": {"description": "Any JSON value."}})}},
    }
    limit = {"type": "integer", "minimum": 1, "maximum": MAX_CONNECTIONS, "default": DEFAULT_CONNECTIONS}
    listed = [
        query("sub", text, "Only those of this user."),
        query("sid", sid, "Only the one with this id."),
        query("limit", limit, "Maximum number of connections in the answer."),
        query("room", {"type": "string", "minLength": 1}, "Only those in this room, or subscribed to this channel."),
    ]
    of_connection: Json = {"name": "sid", "in": "path", "required": True, "schema": sid}
    return {
        "/api/connections": {"get": operation("connections", "List the newest connections", listed, "Connections")},
        "/api/connections/{sid}": {
            "delete": operation("disconnectConnection", "Disconnect a connection", [of_connection])
        },
        "/api/users/{sub}/connections": {"delete": operation("disconnectUser", "Disconnect a user", [user])},
        "/api/users/{sub}/subscriptions": {
            "delete": operation("unsubscribeUser", "End subscriptions of a user", [user, channel])
        },
        "/api/users/{sub}/messages": {"post": send},
    }


def control_schemas() -> Json:
    """Return the schemas of their answers."""
    text: Json = {"type": "string"}
    names: Json = {"type": "array", "items": text}
    number: Json = {"type": "integer", "minimum": 0}
    worker: Json = {"type": ["integer", "null"], "description": "null: the node has one process."}
    connection = object_of(
        {
            "sid": text,
            "sub": {"type": ["string", "null"]},
            "claims": {"type": "object", "description": "Those that FROM_CLAIMS names."},
            "node": text,
            "worker": worker,
            "address": text,
            "since": {"type": "number", "description": "Seconds since 1970."},
            "transport": {"enum": ["websocket", "polling", "stream"]},
            "buffered": number | {"description": "Bytes that wait for the client."},
            "subscriptions": number,
            "channels": names | {"description": "At most 100 channels and patterns."},
            "tables": names | {"description": "At most 100 live tables."},
        },
        {"namespace": text},
    )
    counted = {
        "count": number,
        "processes": number | {"description": "The processes that have answered."},
        "unanswered": {
            "type": "array",
            "items": object_of({"node": text, "worker": worker}),
            "description": "The processes that did not answer in time.",
        },
    }
    return {
        "Connections": object_of({"connections": {"type": "array", "items": connection}, **counted}),
        "Done": object_of(counted),
    }
