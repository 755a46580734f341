"""The docs agree with the code: events, error codes, modules, named tests; their links lead somewhere."""

import ast
import functools
import importlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from socketio_pg.core import errors
from socketio_pg.postgres import schema
from socketio_pg.protocol.encoded import BATCH
from socketio_pg.protocol.server import RESERVED_EVENTS
from socketio_pg.websocket import SocketServer

#: Events that docs and clients rely on, independent of the code.
PROMISED = {
    "subscribe", "subscribed", "unsubscribe", "unsubscribed", "publish", "published",
    "authenticate", "authenticated", "token_expiring", "server_hello", "event", "events", "gap", "error", "health",
    "live", "snapshot", "presence_get", "presence_update", "presence_leave", "presence", "presence_state",
    "presence_ended", "direct",
}  # fmt: skip
#: Events of `SocketServer(test=True)` only; the docs may have them.
OF_TESTS = {"test_pub"}


@pytest.fixture
def protocol_md(root: Path) -> str:
    return (root / "docs" / "protocol.md").read_text("utf-8")


def sections(markdown: str) -> Iterator[tuple[str, str]]:
    """Yield each ``##`` heading with the text below it."""
    for part in re.split(r"^## ", markdown, flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        yield title.strip(), body


def documented_codes(markdown: str) -> list[str]:
    """Return the first column of the table below ``## Error codes``: rows that start with ``| `code` |``."""
    [body] = [body for title, body in sections(markdown) if title == "Error codes"]
    return re.findall(r"^\| `([^`]+)` \|", body, re.MULTILINE)


def documented_events(markdown: str) -> list[str]:
    """Return the headings ``### `name` ``."""
    return re.findall(r"^### `([^`]+)`\s*$", markdown, re.MULTILINE)


@functools.cache
def emitted_events(root: Path) -> frozenset[str]:
    """Return the first arguments of ``emit``, ``_emit``, ``emit_in_order``, ``encode_message`` and ``Answer``.

    And the event that is put together from others.
    """
    names = {BATCH}
    for path in (root / "socketio_pg").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr="emit" | "_emit" | "emit_in_order" | "encode_message"),
                    args=[ast.Constant(value=str(name)), *_],
                ):
                    names.add(name)
                case ast.Call(func=ast.Name(id="Answer"), args=[ast.Constant(value=str(name)), *_]):
                    names.add(name)
    return frozenset(names)


def registered_events(server: SocketServer) -> set[str]:
    return set(server.socketio.server.handlers["/"])


def test_code_has_exactly_the_promised_events(root: Path, socket_server: SocketServer) -> None:
    assert registered_events(socket_server) | emitted_events(root) == PROMISED


def test_every_event_has_a_section(root: Path, protocol_md: str, socket_server: SocketServer) -> None:
    events = registered_events(socket_server) | emitted_events(root)
    documented = documented_events(protocol_md)
    assert events - set(documented) == set()
    assert len(documented) == len(set(documented))


def test_every_section_is_about_an_existing_event(root: Path, protocol_md: str, socket_server: SocketServer) -> None:
    # The docs may describe Socket.IO's own connect, connect_error and disconnect.
    events = registered_events(socket_server) | emitted_events(root) | RESERVED_EVENTS | OF_TESTS
    assert set(documented_events(protocol_md)) - events == set()


def test_table_has_every_error_code_once(protocol_md: str) -> None:
    assert sorted(documented_codes(protocol_md)) == sorted(errors.wire_codes())


def test_architecture_lists_every_module_once(root: Path) -> None:
    table = (root / "docs" / "architecture.md").read_text("utf-8").split("| module |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (`[^|]+`) \|", table, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([\w/]+)`", row)]
    package = root / "socketio_pg"
    modules = [path.relative_to(package).with_suffix("").as_posix() for path in package.rglob("*.py")]
    assert sorted(named) == sorted(name for name in modules if not name.endswith("__init__"))


def test_named_tests_exist(root: Path) -> None:
    """`tests/file.py::name`, and `::name` after another name of the same file."""
    text = (root / "docs" / "security.md").read_text("utf-8")
    named: list[tuple[str, str]] = []
    for path, name in re.findall(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`", text):
        if path or name:
            named.append((path or named[-1][0], name))
    assert len(named) > 100
    missing = {path for path, _ in named if not (root / path).is_file()}
    assert not missing
    for path, name in named:
        functions = re.findall(r"^def (\w+)", (root / path).read_text("utf-8"), re.MULTILINE)
        assert not name or name in functions, f"{path}::{name}"


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub makes for the headings of a page."""
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = [heading.lower() for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


def test_links_between_pages_lead_somewhere(root: Path) -> None:
    pages = [root / "README.md", root / "CHANGELOG.md", root / "CONTRIBUTING.md", *(root / "docs").glob("*.md")]
    for page in pages:
        for path, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)#?([^)\s]*)\)", page.read_text("utf-8")):
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.name}: {path}"
            assert not anchor or anchor in anchors(target), f"{page.name}: {path}#{anchor}"


def test_readme_is_short_and_in_order(root: Path) -> None:
    text = (root / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 130
    assert [title for title, _ in sections(text)] == [
        "Install", "60-second tour", "Watch a table", "Publish from SQL, Python, HTTP", "In the browser", "Secure it",
        "NOTIFY or the log", "Documentation", "Limits and license",
    ]  # fmt: skip


def test_readme_links_to_every_page(root: Path) -> None:
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)", (root / "README.md").read_text("utf-8")))
    assert linked == {page.name for page in (root / "docs").glob("*.md")}


def test_supported_versions_of_postgres_are_tested_and_documented(root: Path) -> None:
    [tested] = re.findall(r"^MAJORS := (.+)$", (root / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert [int(major) for major in tested.split()] == list(schema.MAJORS)
    rows = re.findall(
        r"^\| (\d+) \| .*`make test-postgres`", (root / "docs/deploy.md").read_text("utf-8"), re.MULTILINE
    )
    assert [int(major) for major in rows] == list(reversed(schema.MAJORS))


def test_parts_of_database_connections_are_documented(root: Path) -> None:
    """Each ``connect("part")`` and ``session(database, "part")`` has a row in docs/deploy.md."""
    text = (root / "docs" / "deploy.md").read_text("utf-8")
    parts = {"history", "follower"}  # `History` has its name as its part
    for path in (root / "socketio_pg").rglob("*.py"):
        source = path.read_text("utf-8")
        parts |= set(re.findall(r'database\.connect\(\s*"([^"]+)"', source))
        parts |= set(re.findall(r'\bsession\(.*, "([^"]+)"\)', source))
    assert len(parts) >= 18
    assert [part for part in sorted(parts) if f"`socketio_pg {part}`" not in text and f"`{part}`" not in text] == []


def test_sentences_begin_with_their_subject(root: Path) -> None:
    """No sentence begins with What, Who or Whose, except a question."""
    pages = [root / "README.md", root / "CONTRIBUTING.md", root / "bench" / "README.md", *(root / "docs").glob("*.md")]
    texts = {page.name: page.read_text("utf-8") for page in pages}
    texts["CHANGELOG.md"] = (root / "CHANGELOG.md").read_text("utf-8").split("\n## ")[1]
    for name, text in texts.items():
        text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        begin = r"(?:^[-\d. ]*|\| |\*\*|[.:] )"
        found = re.findall(begin + r"((?:What|Who|Whose|Whom|Whoever|Nor)\b[^.?|]*[.|])", text, re.MULTILINE)
        assert not found, f"{name}: {found}"


def blocks(root: Path, language: str) -> list[tuple[str, str]]:
    """Return (page, code) of each block of code in the docs."""
    pages = [root / "README.md", *(root / "docs").glob("*.md")]
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(page.name, code) for page in pages for code in pattern.findall(page.read_text("utf-8"))]


def test_python_in_the_docs_compiles_and_imports_existing_names(root: Path) -> None:
    imported = 0
    for page, code in blocks(root, "python"):
        for node in ast.walk(ast.parse(code, page)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("socketio_pg"):
                imported += 1
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), f"{page}: {ast.unparse(node)}"
    assert imported > 10


def test_json_in_the_docs_is_json(root: Path) -> None:
    for page, code in blocks(root, "json"):
        assert json.loads(code), page


def test_shell_in_the_docs_is_shell(root: Path) -> None:
    script = "\n".join(code.replace("<this repository>", "URL") for _, code in blocks(root, "sh"))
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=120)
    assert checked.returncode == 0, checked.stderr
