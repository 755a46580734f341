"""The OpenAPI document agrees with the code: limits, codes, statuses, routes."""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketio_pg.core.channels import validate_channel
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import InvalidChannelError
from socketio_pg.log.log import Log
from socketio_pg.web import openapi as module
from socketio_pg.web.api_errors import BODY_STATUSES, STATUSES
from socketio_pg.web.openapi import REASONS, openapi
from socketio_pg.websocket import SocketServer

NOWHERE = "postgresql://user:password@127.0.0.1:9/nowhere"
DOCUMENT = openapi(Settings(max_payload=12_345), "required", 67_890)


def operations(document: dict[str, Any] = DOCUMENT) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def schema(name: str) -> Any:
    """Return a validator for a schema of the document."""
    return jsonschema_rs.validator_for(
        {"$ref": f"#/components/schemas/{name}"} | {"components": DOCUMENT["components"]}
    )


@pytest.mark.parametrize("token", [None, "an operator's token"])
def test_document_has_all_routes(clean_settings: Path, token: str | None) -> None:
    """With ADMIN_TOKEN also those of control."""
    settings = Settings(admin_token=token)
    socket_server = SocketServer(dsn=NOWHERE, settings=settings)
    document = openapi(settings, "required", 67_890)
    routes = {
        (re.sub("<.*:(.*)>", r"{\1}", rule.rule), method.lower())
        for rule in socket_server.app.url_map.iter_rules()
        if rule.endpoint.startswith("socketio_pg_api.")
        for method in (rule.methods or set()) - {"OPTIONS", "HEAD"}
    }
    assert {(path, method) for path, method, _ in operations(document)} == routes
    assert (("/api/connections", "get") in routes) is (token is not None)


def test_document_has_every_status_and_code() -> None:
    """The operations together have all statuses and codes."""
    found: dict[int, set[str]] = {}
    for _, _, operation in operations():
        for status, response in operation["responses"].items():
            if status == "200":
                continue
            error = response["content"]["application/json"]["schema"]["properties"]["error"]
            found.setdefault(int(status), set()).update(error["properties"]["code"]["enum"])
    wanted = {status: {code for code in STATUSES if STATUSES[code] == status} for status in STATUSES.values()}
    assert found == wanted | {status: {"invalid_request"} for status in BODY_STATUSES}


def test_document_has_all_reasons() -> None:
    """They are exactly the reasons that `_unrecoverable` returns."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(Log._unrecoverable)))
    returned = {
        constant.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Return) and node.value is not None
        for constant in ast.walk(node.value)
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str)
    }
    assert sorted(REASONS) == sorted(returned)


def test_limits_come_from_the_settings() -> None:
    text = json.dumps(DOCUMENT)
    assert "12345 through the log" in text
    assert "At most 67890 bytes" in text
    assert "7999 bytes with NOTIFY" in text


@pytest.mark.parametrize(
    ("mode", "wanted"), [("off", []), ("optional", [{}, {"token": []}]), ("required", [{"token": []}])]
)
def test_security_depends_on_the_mode(mode: str, wanted: list[Any]) -> None:
    assert openapi(Settings(), mode, 1)["security"] == wanted


def test_every_reference_can_be_resolved() -> None:
    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(DOCUMENT)):
        assert name in DOCUMENT["components"]["schemas"]
    for name in DOCUMENT["components"]["schemas"]:
        schema(name)  # raises an error if it is not a schema


@given(st.text(max_size=70) | st.sampled_from(["socketio_pg", "socketio_pgx", " a", "a\n", "a\u3000", "*", "\x85a"]))
def test_channel_schema_agrees_with_the_code(name: str) -> None:
    """The schema accepts the same names as the code, except that it cannot count bytes."""
    try:
        problem = None if validate_channel(name) else ""
    except InvalidChannelError as error:
        problem = error.message
    assert schema("Channel").is_valid(name) is (problem is None) or "bytes of UTF-8" in (problem or "")


def test_publication_schemas() -> None:
    one, many = schema("Publication"), schema("Publications")
    message = {"channel": "a", "payload": None}
    assert one.is_valid(message)
    assert many.is_valid({"messages": [message] * 1000})
    assert not many.is_valid({"messages": [message] * 1001})
    assert not many.is_valid({"messages": []})
    for wrong in ({"messages": [message]} | message, {"channel": "a"}, message | {"durable": 1}, [message]):
        assert not one.is_valid(wrong)
        assert not many.is_valid(wrong)


def test_module_does_not_use_flask() -> None:
    assert "flask" not in inspect.getsource(module)
