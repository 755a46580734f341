"""Validation against docs/asyncapi.yaml."""

import functools
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import yaml

from tests.support.server import ROOT


@functools.cache
def document() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "asyncapi.yaml").read_text("utf-8"))
    return found


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = document()["components"]["schemas"][name]
    return found


def message_names(action: str) -> list[str]:
    """Return the names of the events that the server receives ("receive") or sends ("send")."""
    return [
        reference["$ref"].rpartition("/")[2]
        for operation in document()["operations"].values()
        if operation["action"] == action
        for reference in operation["messages"]
    ]


def check(message: str, value: Any) -> None:
    """Raise AssertionError when ``value`` does not match the message's schema or has undocumented fields."""
    described = document()["components"]["messages"][message]["payload"]
    # Every field must be described in one of the schema's parts.
    whole = {**described, "components": document()["components"], "unevaluatedProperties": False}
    errors = list(jsonschema_rs.validator_for(whole, validate_formats=True).iter_errors(value))
    assert not errors, (message, value, errors)


def references(node: Any) -> Iterator[str]:
    """Yield all references in the document."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for inner in node:
            yield from references(inner)
