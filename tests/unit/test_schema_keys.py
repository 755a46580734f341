"""The schema that the client for browsers takes for a channel."""

import json
import subprocess

import pytest

from tests.support.bundles import PACKAGE, build_package

SCRIPT = """
import { schemaFor } from "%s";
const schemas = {
  chat: "own", "orders:*": "pattern", "n:${number}": "number", undefined: "other", ["__proto__"]: "odd",
};
console.log(JSON.stringify(JSON.parse(process.argv[1]).map((name) => schemaFor(schemas, name) ?? null)));
"""


@pytest.fixture(scope="module")
def found() -> dict[str, str | None]:
    build_package()
    names = ["chat", "orders:7", "n:-1.5", "n:x", "constructor", "toString", "__proto__", "chats"]
    script = SCRIPT % (PACKAGE / "dist" / "schema.js").as_uri()
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script, json.dumps(names)], capture_output=True, text=True, check=True
    )
    return dict(zip(names, json.loads(done.stdout), strict=True))


def test_schema_is_the_one_of_the_name_or_of_a_pattern(found: dict[str, str | None]) -> None:
    assert {name: found[name] for name in ("chat", "orders:7", "n:-1.5", "n:x", "chats")} == {
        "chat": "own", "orders:7": "pattern", "n:-1.5": "number", "n:x": None, "chats": None,
    }  # fmt: skip


def test_names_that_objects_inherit_have_none(found: dict[str, str | None]) -> None:
    assert (found["constructor"], found["toString"], found["__proto__"]) == (None, None, "odd")
