"""Compiles TypeScript with the compiler of js/, and writes values as expressions."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.missing import missing
from tests.support.server import ROOT

PACKAGE = ROOT / "js"
#: Strict, as the documentation recommends it, and nothing from the machine's own folders.
OPTIONS: Mapping[str, Any] = {
    "strict": True, "noEmit": True, "target": "es2022", "module": "nodenext", "moduleResolution": "nodenext",
    "exactOptionalPropertyTypes": True, "noUncheckedIndexedAccess": True, "skipLibCheck": True, "types": [],
    "lib": ["es2022"],
}  # fmt: skip


def compiler() -> Path:
    """Return the path of the compiler, a program for Node. Skip the test without one."""
    found = PACKAGE / "node_modules/typescript/bin/tsc"
    if not found.exists() or shutil.which("node") is None:
        missing("A TypeScript compiler", "install Node and npm, and run 'make setup'")
    return found


def errors(folder: Path, *, tsc: Path | None = None, **options: Any) -> list[str]:
    """Compile all files of ``folder``. Return the errors, one line each."""
    configuration = {"compilerOptions": {**OPTIONS, **options}, "include": ["**/*.ts", "**/*.tsx"]}
    (folder / "tsconfig.json").write_text(json.dumps(configuration))
    done = subprocess.run(
        ["node", str(tsc or compiler()), "--project", str(folder), "--pretty", "false"],
        capture_output=True, text=True, cwd=folder,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line]
    assert (done.returncode == 0) == (not lines), done
    return lines


def expression(value: Any) -> str:
    """Return a JSON value as an expression. ``__proto__`` is a property as any other."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"[{json.dumps(key)}]: {expression(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(expression, value)) + "]"
    return json.dumps(value)
