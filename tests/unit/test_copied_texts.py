"""The statements and commands that pages offer to copy: a shell and a terminal read in them what was published."""

import json
import subprocess
from typing import Any

from tests.support.server import ROOT

SCRIPT = """
import { curlCommand, notifyStatement, oneLine, publishStatement, visible } from "%s";
const { url, channel, text } = JSON.parse(process.argv[1]);
const value = JSON.parse(text);
const deep = "[".repeat(3000) + "]".repeat(3000);
console.log(JSON.stringify({
  curl: curlCommand(url, channel, visible(text), true), line: oneLine(value), deep: oneLine(JSON.parse(deep)) === deep,
  notify: notifyStatement(channel, visible(text)), publish: publishStatement(channel, visible(text)),
}));
"""
URL = "https://example.com/a'b;$(touch x)/api/publish"
CHANNEL = """it's "orders"; $(touch x) `touch x`"""
VALUE: Any = {
    "__proto__": {"a": [1, 2.5, [], {}]},
    'quo"te\\': "';\\' $(touch x) `touch x` !! \x7f\x7f\u202e\u200b\x9b é: ,",
}


def test_copied_texts_are_read_as_published() -> None:
    text = json.dumps(VALUE, ensure_ascii=False)
    request = json.dumps({"url": URL, "channel": CHANNEL, "text": text})
    made = subprocess.run(
        ["node", "--input-type=module", "-e", SCRIPT % (ROOT / "socketio_pg" / "static" / "sql.js").as_uri(), request],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(made.stdout)
    # What bash passes to curl.
    shown = subprocess.run(
        ["bash", "-c", f'TOKEN=secret; curl() {{ printf "%s\\0" "$@"; }}; {found["curl"]}'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    url, _, bearer, _, kind, _, body = shown.stdout.removesuffix("\0").split("\0")
    assert (url, bearer, kind) == (URL, "Authorization: Bearer secret", "Content-Type: application/json")
    assert json.loads(body) == {"channel": CHANNEL, "payload": VALUE, "durable": True}
    # A terminal obeys none of the characters, and shows all of them.
    for command in (found["curl"], found["notify"], found["publish"]):
        assert all(character.isprintable() for character in command)
    assert found["line"] == text
    assert found["deep"]
    assert found["publish"].count("'") % 2 == 0
