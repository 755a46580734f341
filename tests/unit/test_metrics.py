"""The metrics: their names, and references in docs/metrics.md, deploy/alerts.yml and deploy/grafana.json."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from socketio_pg.core import metrics
from socketio_pg.gateway.gauges import GAUGES, Gauges
from socketio_pg.gateway.node_metrics import NODE_METRICS
from socketio_pg.log.backlog import Backlog, Reading
from socketio_pg.websocket import SocketServer
from tests.support.metrics import described, series
from tests.support.missing import missing

NAME = re.compile(r"\b(?:socketio_pg|process)_[a-z0-9_]+")


def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        missing("promtool", "install Debian's `prometheus`")
    return found


def panels(root: Path) -> list[dict[str, Any]]:
    board = json.loads((root / "deploy" / "grafana.json").read_text("utf-8"))
    found: list[dict[str, Any]] = board["panels"]
    return found


def queries(root: Path) -> Iterator[tuple[str, str]]:
    """Yield (title, PromQL) of the dashboard's panels."""
    for panel in panels(root):
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def alerts(root: Path) -> list[tuple[str, str]]:
    """Return (name, text of the rule) of each alert."""
    text = (root / "deploy" / "alerts.yml").read_text("utf-8")
    rules = re.split(r"^ +- alert: ", text, flags=re.MULTILINE)[1:]
    return [(rule.partition("\n")[0], rule) for rule in rules]


@pytest.fixture
def no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backlog, "reading", Reading(0.5, 3, 1.5))


# -- docs --------------------------------------------------------------------------------------------------------------


def test_docs_have_exactly_the_metrics(root: Path) -> None:
    text = (root / "docs" / "metrics.md").read_text("utf-8")
    table = re.findall(r"^\| `(socketio_pg_\w+)` \| (\w+) \|(.*?)\| (.+) \|$", text, re.MULTILINE)
    rows = [(name, kind, ", ".join(re.findall(r"`(\w+)`", labels)), help) for name, kind, labels, help in table]
    assert rows == described()


def test_docs_have_exactly_the_alerts(root: Path) -> None:
    text = (root / "docs" / "metrics.md").read_text("utf-8")
    assert re.findall(r"^\| `(SocketioPg\w+)` \|", text, re.MULTILINE) == [name for name, _ in alerts(root)]


def test_docs_have_exactly_the_parts(root: Path, socket_server: SocketServer) -> None:
    [body] = re.findall(r"^## Readiness$(.*?)^## ", (root / "docs" / "metrics.md").read_text("utf-8"), re.M | re.S)
    assert re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE) == list(socket_server.health())


# -- deploy ------------------------------------------------------------------------------------------------------------


def test_alerts_use_existing_metrics(root: Path) -> None:
    for name, rule in alerts(root):
        used = set(NAME.findall(re.sub(r"annotations:.*", "", rule, flags=re.DOTALL)))
        assert used, name
        assert used <= series(), name


def test_alerts_use_existing_label_values(root: Path) -> None:
    text = metrics.render()[0].decode()
    for name, rule in alerts(root):
        for label, value in re.findall(r'(\w+)="([^"{]+)"', rule):
            assert f'{label}="{value}"' in text, name


def test_dashboard_uses_existing_metrics(root: Path) -> None:
    found = dict(queries(root))
    assert len(found) > 20
    for title, query in queries(root):
        used = set(NAME.findall(query))
        assert used, title
        assert used <= series(), title


def test_dashboard_has_every_metric(root: Path) -> None:
    shown = " ".join(query for _, query in queries(root))
    unseen = {name for name, *_ in described() if not re.search(rf"\b{name}(_bucket|_sum|_count)?\b", shown)}
    assert unseen == {"socketio_pg_build_info"}, "used only for the dashboard's variables"


def test_dashboard_panels_do_not_overlap(root: Path) -> None:
    found = panels(root)
    assert len({panel["id"] for panel in found}) == len(found)
    taken: set[tuple[int, int]] = set()
    for panel in found:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_promtool_accepts_the_alerts(root: Path) -> None:
    assert complaints(promtool(), "check", "rules", "--lint-fatal", str(root / "deploy" / "alerts.yml")) is None


def test_promtool_accepts_the_dashboard_queries(root: Path, tmp_path: Path) -> None:
    program = promtool()
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$__rate_interval", "5m", query).replace("$", "")}
        for number, (_, query) in enumerate(queries(root))
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), "utf-8")  # JSON is YAML
    assert complaints(program, "check", "rules", str(file)) is None


@pytest.mark.usefixtures("no_database")
def test_promtool_accepts_the_metrics(socket_server: SocketServer) -> None:
    """`promtool check metrics` checks help texts, units and suffixes."""
    text, _ = socket_server.gauges.render()
    # Excludes the client library's _created series, which can only be disabled for the whole program.
    ours = "".join(line for line in text.decode().splitlines(keepends=True) if "_created" not in line)
    assert complaints(promtool(), "check", "metrics", stdin=ours) is None


def complaints(*command: str, stdin: str = "") -> str | None:
    """Run a checking program. Return its output, or None when it succeeds."""
    result = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)
    return None if result.returncode == 0 else f"{result.returncode}: {result.stdout}{result.stderr}"


# -- names and labels --------------------------------------------------------------------------------------------------


def test_metric_names_and_labels(socket_server: SocketServer) -> None:
    names = [name for name, *_ in described()]
    assert len(names) == len(set(names))
    for name, kind, labels, help in described():
        assert name.startswith("socketio_pg_")
        assert name.endswith("_total") is (kind == "counter")
        assert help.endswith((".", "(lagging).")), name
        assert not set(labels.split(", ")) & {"channel", "room", "sid", "client", "role", "le"}


@pytest.mark.usefixtures("no_database")
def test_all_gauges_are_collected(socket_server: SocketServer) -> None:
    gauges = socket_server.gauges
    assert isinstance(gauges, Gauges)
    found = {family.name.removeprefix("socketio_pg_") for family in gauges.collect()}
    assert found == set(GAUGES) - {"log_position", "log_behind_messages"}, "no log is installed"


def test_a_node_with_one_worker_has_no_metrics_of_workers(socket_server: SocketServer) -> None:
    text = socket_server.gauges.render()[0].decode()
    assert "socketio_pg_clients 0.0" in text
    assert not [name for name in NODE_METRICS if f"socketio_pg_{name}" in text]


@pytest.mark.usefixtures("no_database")
def test_servers_in_one_process_have_separate_gauges(socket_server: SocketServer) -> None:
    other = SocketServer(dsn="postgresql://user:password@127.0.0.1:9/nowhere")
    other.pubsub.hub.add("somebody")
    assert b"socketio_pg_clients 1.0" in other.gauges.render()[0]
    assert b"socketio_pg_clients 0.0" in socket_server.gauges.render()[0]
