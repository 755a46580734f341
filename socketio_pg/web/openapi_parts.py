"""The parts that operations of the OpenAPI document share: parameters, responses, the error codes of `api_errors`."""

from typing import Any

from socketio_pg.web.api_errors import BODY_STATUSES, STATUSES

Json = dict[str, Any]


def query(name: str, schema: Json, description: str) -> Json:
    """Return an optional parameter of the query string."""
    return {"name": name, "in": "query", "schema": schema, "description": description}


def errors(*statuses: int) -> Json:
    """Return the error responses with these statuses, each with the codes that have it."""
    return {str(status): _error(status) for status in statuses}


def _error(status: int) -> Json:
    codes = [code for code, found in STATUSES.items() if found == status] or ["invalid_request"]
    error = {
        "type": "object",
        "required": ["code", "message"],
        "properties": {"code": {"enum": codes}, "message": {"type": "string"}, "channel": {"type": "string"}},
    }
    response = json_response(BODY_STATUSES.get(status, ", ".join(codes)) + ".", object_of({"error": error}))
    if status == 401:
        response["headers"] = {"WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}}}
    if status in (429, 503):
        seconds = {"type": "integer", "minimum": 1}
        response["headers"] = {"Retry-After": {"required": True, "schema": seconds}}
    return response


def object_of(required: Json, optional: Json | None = None) -> Json:
    """Return the schema of an object with these fields."""
    return {"type": "object", "required": list(required), "properties": required | (optional or {})}


def json_response(description: str, schema: Json) -> Json:
    """Return a response with a body in JSON."""
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def ref(name: str) -> Json:
    """Return a reference to a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}
