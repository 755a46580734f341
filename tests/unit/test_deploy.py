"""The files in deploy/ agree with the code. tests/live/test_nodes.py runs nginx.conf."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from flask import Flask

from socketio_pg.core import config, loading
from socketio_pg.web import pages as web
from tests.support.missing import missing

SETTINGS = {field.name.upper() for field in dataclasses.fields(config.Settings)}
#: Maximum seconds from SIGTERM to the end of a node (tests/live/test_processes.py).
SHUTDOWN = 10
PORT = 3030
#: Upper-case names that are not settings.
OTHERS = {"POSTGRES_PASSWORD", "AF_INET", "AF_UNIX"}


@pytest.fixture
def deploy(root: Path) -> Path:
    return root / "deploy"


@pytest.fixture
def compose(deploy: Path) -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load((deploy / "docker-compose.yml").read_text("utf-8"))
    return made


@pytest.fixture
def kubernetes(deploy: Path) -> dict[str, Any]:
    return {one["kind"]: one for one in yaml.safe_load_all((deploy / "kubernetes.yaml").read_text("utf-8"))}


@pytest.fixture
def container(kubernetes: dict[str, Any]) -> dict[str, Any]:
    [only] = kubernetes["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


@pytest.fixture
def paths() -> set[str]:
    blueprint = web.create_blueprint(dict, lambda: (b"", ""), enable_test_page=False, metrics_token="x")
    app = Flask("paths", static_folder=None)
    app.register_blueprint(blueprint)
    return {rule.rule for rule in app.url_map.iter_rules()}


def seconds(text: str) -> int:
    [number] = re.findall(r"^(\d+)s$", text)
    return int(number)


def check(environment: dict[str, str]) -> None:
    """Check that all names are settings, and that all values without a placeholder are valid."""
    assert set(environment) <= SETTINGS
    loading.load({name: value for name, value in environment.items() if "${" not in value}, None)


def test_every_file_requires_tokens(
    deploy: Path, root: Path, compose: dict[str, Any], container: dict[str, Any]
) -> None:
    """A node whose key is missing does not start, instead of serving every client."""
    assert (
        "AUTH=required"
        in re.findall(r"^ENV (.*)$", (deploy / "Dockerfile").read_text("utf-8"), re.MULTILINE)[0].split()
    )
    assert all(compose["services"][f"node{n}"]["environment"]["AUTH"] == "${AUTH:-required}" for n in (1, 2, 3))
    assert {"name": "AUTH", "value": "required"} in container["env"]
    assert "\nEnvironment=AUTH=required\n" in (deploy / "socketio_pg@.service").read_text("utf-8")
    assert "AUTH=required" in (root / "Procfile").read_text("utf-8")


def test_every_file_switches_the_demo_page_off(
    deploy: Path, root: Path, compose: dict[str, Any], container: dict[str, Any]
) -> None:
    [environment] = re.findall(r"^ENV (.*)$", (deploy / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert "TEST_PAGE=0" in environment.split()
    assert all(compose["services"][f"node{n}"]["environment"]["TEST_PAGE"] == "${TEST_PAGE:-0}" for n in (1, 2, 3))
    assert {"name": "TEST_PAGE", "value": "0"} in container["env"]
    assert "\nEnvironment=TEST_PAGE=0\n" in (deploy / "socketio_pg@.service").read_text("utf-8")
    assert "TEST_PAGE=0" in (root / "Procfile").read_text("utf-8")


# -- the image ---------------------------------------------------------------------------------------------------------


def test_dockerfile(root: Path, deploy: Path, paths: set[str]) -> None:
    text = (deploy / "Dockerfile").read_text("utf-8")
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        *sources, _ = line.split()
        assert all((root / source).exists() for source in sources), line
    # setup.py reads these files.
    assert {"requirements.txt", "README.md", "setup.py"} <= set(re.findall(r"\S+", text))
    [environment] = re.findall(r"^ENV (.+)$", text, re.MULTILINE)
    values = dict(word.split("=") for word in environment.split())
    assert values.pop("PYTHONUNBUFFERED") == "1"
    check(values)
    assert values == {"HOST": "0.0.0.0", "PORT": str(PORT), "AUTH": "required", "TEST_PAGE": "0"}
    assert f"EXPOSE {PORT}" in text
    assert set(re.findall(rf"http://127.0.0.1:{PORT}(/\w+)", text)) <= paths
    [command] = re.findall(r"^CMD (.+)$", text, re.MULTILINE)
    assert json.loads(command) == ["socketio-pg", "serve"]
    [python] = re.findall(r"^FROM python:3\.(\d+)", text, re.MULTILINE)
    assert int(python) >= 10


# -- docker compose ----------------------------------------------------------------------------------------------------


def test_compose(deploy: Path, compose: dict[str, Any], paths: set[str]) -> None:
    services = compose["services"]
    for name in ("node1", "node2", "node3"):
        node = services[name]
        assert (deploy / node["build"]["context"] / node["build"]["dockerfile"]).samefile(deploy / "Dockerfile")
        check(node["environment"])
        assert seconds(node["stop_grace_period"]) > SHUTDOWN
        assert int(node["environment"]["MAX_CONNECTIONS"]) < node["ulimits"]["nofile"]
        [path] = re.findall(rf"http://127.0.0.1:{PORT}(/\w+)", " ".join(node["healthcheck"]["test"]))
        assert path in paths
        assert "@postgres/" in node["environment"]["DATABASE_URL"]
        assert set(node["depends_on"]) <= set(services)
    addresses = {services[name]["networks"]["default"]["ipv4_address"] for name in ("node1", "node2", "node3")}
    assert len(addresses) == 3
    [volume] = services["nginx"]["volumes"]
    source, target, _ = volume.split(":")
    assert (deploy / source).is_file()
    assert target == "/etc/nginx/nginx.conf"
    conf = (deploy / "nginx.conf").read_text("utf-8")
    assert set(re.findall(r"^ +server (\S+):(\d+) ", conf, re.MULTILINE)) == {
        (name, str(PORT)) for name in services if name.startswith("node")
    }
    assert services["nginx"]["ports"] == ["8080:80"]
    assert "listen 80 " in conf


def test_nginx_limits_exceed_the_default_settings(deploy: Path) -> None:
    conf = (deploy / "nginx.conf").read_text("utf-8")
    defaults = config.Settings()
    [body] = re.findall(r"client_max_body_size (\d+)m;", conf)
    assert int(body) * 2**20 > defaults.max_payload + 65_536
    [read] = re.findall(r"proxy_read_timeout (\d+)s;", conf)
    assert int(read) > defaults.ping_interval + defaults.ping_timeout


# -- Kubernetes --------------------------------------------------------------------------------------------------------


def test_kubernetes_objects_refer_to_each_other(kubernetes: dict[str, Any], container: dict[str, Any]) -> None:
    deployment = kubernetes["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels == kubernetes["Service"]["spec"]["selector"]
    assert kubernetes["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    [port] = container["ports"]
    assert port["containerPort"] == PORT
    [service_port] = kubernetes["Service"]["spec"]["ports"]
    assert service_port["targetPort"] == port["name"]
    [rule] = kubernetes["Ingress"]["spec"]["rules"]
    [path] = rule["http"]["paths"]
    backend = path["backend"]["service"]
    assert backend["name"] == kubernetes["Service"]["metadata"]["name"]
    assert backend["port"]["name"] == service_port["name"]
    volumes = {volume["name"] for volume in deployment["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_kubernetes_probes_and_settings(kubernetes: dict[str, Any], container: dict[str, Any], paths: set[str]) -> None:
    for probe, path in (("readinessProbe", "/readyz"), ("livenessProbe", "/healthz"), ("startupProbe", "/healthz")):
        assert container[probe]["httpGet"] == {"path": path, "port": "http"}
        assert path in paths
    environment = {one["name"]: one["value"] for one in container["env"]}
    check(environment)
    pod = kubernetes["Deployment"]["spec"]["template"]["spec"]
    command, pause = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert pod["terminationGracePeriodSeconds"] > int(pause) + SHUTDOWN


def test_upper_case_names_are_settings(deploy: Path) -> None:
    for name in ("docker-compose.yml", "kubernetes.yaml", "nginx.conf", "socketio_pg@.service"):
        text = (deploy / name).read_text("utf-8")
        for word in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", text):
            assert word in SETTINGS | OTHERS, f"{word} in {name}"


# -- systemd -----------------------------------------------------------------------------------------------------------


def test_systemd_unit(deploy: Path, tmp_path: Path) -> None:
    text = (deploy / "socketio_pg@.service").read_text("utf-8")
    [stop] = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert int(stop) > SHUTDOWN
    [descriptors] = re.findall(r"^LimitNOFILE=(\d+)$", text, re.MULTILINE)
    assert int(descriptors) > config.Settings().max_connections
    assert set(re.findall(r"^Environment=(\w+)=%i$", text, re.MULTILINE)) == {"PORT"}
    program = shutil.which("systemd-analyze")
    if program is None:
        missing("the check of the systemd unit", "install systemd-analyze (apt install systemd)")
    # The unit's program is not installed here.
    unit = tmp_path / "socketio_pg@3031.service"
    unit.write_text(text.replace("/opt/socketio_pg/.venv/bin/socketio-pg", sys.executable))
    verified = subprocess.run([program, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
