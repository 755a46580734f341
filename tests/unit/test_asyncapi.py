"""docs/asyncapi.yaml agrees with the code: events, error codes, reasons, limits."""

import ast
import functools
import operator
import re
from pathlib import Path

import jsonschema_rs
import pytest

from socketio_pg.core import errors
from socketio_pg.core.channels import MAX_CHANNEL_BYTES
from socketio_pg.core.config import Settings
from socketio_pg.core.cursors import MAX_POSITION
from socketio_pg.core.messages import MAX_NOTIFY_BYTES
from socketio_pg.gateway.subscribing import MAX_CHANNELS
from socketio_pg.log.starts import MAX_HISTORY
from socketio_pg.pubsub import filters, like
from socketio_pg.version import __version__
from socketio_pg.web.openapi import REASONS, openapi
from socketio_pg.websocket import SocketServer
from tests.support.asyncapi import document, message_names, references, schema
from tests.unit.test_docs import emitted_events, registered_events


def test_document_has_all_events(root: Path, socket_server: SocketServer) -> None:
    assert sorted(message_names("receive")) == sorted(registered_events(socket_server))
    # emitted_events() includes the names in Answer().
    assert sorted(message_names("send")) == sorted(emitted_events(root) - registered_events(socket_server))


def test_every_reference_can_be_resolved() -> None:
    found = list(references(document()))
    assert found
    for reference in found:
        target = functools.reduce(operator.getitem, reference.removeprefix("#/").split("/"), document())
        assert isinstance(target, dict), reference
    for name, message in document()["components"]["messages"].items():
        assert jsonschema_rs.validator_for({**message["payload"], "components": document()["components"]}), name


def test_every_request_has_an_acknowledgement() -> None:
    acknowledgements = document()["channels"]["acknowledgements"]["messages"]
    assert sorted(acknowledgements) == sorted(message_names("receive"))


def test_error_codes_and_reasons_are_complete(root: Path) -> None:
    assert sorted(schema("Code")["enum"]) == sorted(errors.wire_codes())
    assert schema("Subscribed")["properties"]["reason"]["enum"] == [*REASONS, "history_off"]
    protocol = (root / "docs" / "protocol.md").read_text("utf-8")
    [gap] = re.findall(r"^### `gap`\n(.*?)^### ", protocol, re.MULTILINE | re.DOTALL)
    reasons = schema("Gap")["properties"]["reason"]["enum"]
    assert reasons == re.findall(r"^\| `(\w+)` \|", gap.partition("| reason | |")[2], re.MULTILINE)
    written = {
        node.value
        for name in (
            "postgres/listener",
            "log/follower",
            "gateway/delivery",
            "gateway/replay_client",
            "log/replay",
            "log/skipping",
            "log/skipping",
        )
        for node in ast.walk(ast.parse((root / "socketio_pg" / f"{name}.py").read_text("utf-8")))
        if isinstance(node, ast.Constant)
    }
    assert set(reasons) <= written


def test_limits_agree_with_the_code() -> None:
    channel = openapi(Settings(), "off", 1)["components"]["schemas"]["Channel"]
    assert schema("Channel") == channel
    assert schema("Channel")["maxLength"] == MAX_CHANNEL_BYTES
    assert schema("Position")["maximum"] == MAX_POSITION
    assert schema("Subscribe")["properties"]["history"]["maximum"] == MAX_HISTORY
    for name in ("Subscribe", "Unsubscribe"):
        assert schema(name)["properties"]["channels"]["maxItems"] == MAX_CHANNELS
    assert f"{MAX_NOTIFY_BYTES} bytes" in schema("Publish")["properties"]["payload"]["description"]
    assert document()["info"]["version"] == __version__


def test_filter_limits_agree_with_the_code() -> None:
    described = schema("Filter")
    assert described["maxProperties"] == filters.MAX_CONDITIONS
    assert f"{filters.MAX_BYTES} bytes" in described["description"]
    _, values, operators = described["additionalProperties"]["oneOf"]
    assert sorted(operators["properties"]) == sorted(filters._OPERATORS)
    assert values["maxItems"] == operators["properties"]["in"]["maxItems"] == filters.MAX_VALUES
    assert operators["properties"]["like"]["maxLength"] == like.MAX_PATTERN


@pytest.mark.parametrize(
    "value",
    [{"a": 1}, {"a.b": [1, "x", None]}, {"a": {"gt": 1, "lte": 2}}, {"a": {"like": "x%"}}, {}, {"a": {"eq": True}},
     {"a": {}}, {"a": {"foo": 1}}, {"a": {"lt": None}}, {"a": [[1]]}, {"a": {"in": 1}}, {"a": {"like": 1}}, [], "x",
     {str(n): n for n in range(33)}, {"a": list(range(101))}],
)  # fmt: skip
def test_filter_schema_agrees_with_parse_filter(value: object) -> None:
    described = jsonschema_rs.validator_for(
        {"$ref": "#/components/schemas/Filter", "components": document()["components"]}
    )
    try:
        filters.parse_filter(value)
        problem = False
    except errors.InvalidRequestError:
        problem = True
    assert described.is_valid(value) is not problem
