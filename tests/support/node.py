"""The stock JavaScript client under Node."""

import json
import shutil
import subprocess
from typing import Any

from tests.support.missing import missing
from tests.support.server import ROOT


class NodeClient:
    """Runs `client.mjs`, or another script in its folder, in a Node process."""

    def __init__(self, url: str, transports: str, script: str = "client.mjs", *arguments: str) -> None:
        node = shutil.which("node")
        if node is None or not (ROOT / "node_modules" / "socket.io-client").exists():
            missing("the JavaScript client's tests", "install Node, then `npm ci`")
        self._process = subprocess.Popen(
            [node, str(ROOT / "tests" / "live" / script), url, transports, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.lines: list[dict[str, Any]] = []

    def next(self, **expected: Any) -> dict[str, Any]:
        """Return the next line with these values that was not taken yet."""
        for index, earlier in enumerate(self.lines):
            if expected.items() <= earlier.items():
                return self.lines.pop(index)
        assert self._process.stdout is not None
        for text in self._process.stdout:
            line: dict[str, Any] = json.loads(text)
            if expected.items() <= line.items():
                return line
            self.lines.append(line)
        raise AssertionError(f"the client ended without {expected}; it printed {self.lines}")

    def call(self, event: str, argument: object) -> Any:
        self.send({"emit": event, "argument": argument})
        return self.next(kind="answer")["answer"]

    def send(self, command: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
