"""docs/asyncapi.yaml, and whether something is as it says."""

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
    """The events that the server receives, or sends."""
    return [
        reference["$ref"].rpartition("/")[2]
        for operation in document()["operations"].values()
        if operation["action"] == action
        for reference in operation["messages"]
    ]


def check(message: str, value: Any) -> None:
    """Raise AssertionError when ``value`` is not as the message is described, or has fields that are not described."""
    described = document()["components"]["messages"][message]["payload"]
    # Everything that is sent is described, in any of the parts that it consists of.
    whole = {**described, "components": document()["components"], "unevaluatedProperties": False}
    errors = list(jsonschema_rs.validator_for(whole, validate_formats=True).iter_errors(value))
    assert not errors, (message, value, errors)


def references(node: Any) -> Iterator[str]:
    """All that anything in the document points to."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for inner in node:
            yield from references(inner)
