"""Several nodes on one database behind a real nginx with the configuration in deploy/, and clients under load."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.log import Log
from tests.support.missing import missing
from tests.support.patience import PATIENCE, until
from tests.support.postgres import Cluster
from tests.support.replay_clients import Client, numbers
from tests.support.server import ROOT, ServerProcess, free_port, listens

CONFIGURATION = ROOT / "deploy" / "nginx.conf"


class Request(NamedTuple):
    """A line of nginx's log. ``node``: the address that finally answered; times in seconds since 1970."""

    client: str
    status: int
    node: str
    began: float
    transport: str


def find_nginx() -> str:
    """Return nginx's path. Without nginx, skip the test, or fail on CI."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        missing("the tests of several nodes", "install nginx (apt install nginx-light)")
    return program


class Nginx:
    """nginx in front of nodes on ``ports``: node1 … node3 of deploy/nginx.conf; fewer ports are repeated.

    ``certificate``: (key, certificate) to also serve TLS at :attr:`tls_port`. ``locations``: further locations.
    """

    def __init__(self, ports: list[int], certificate: tuple[str, str] | None = None, *, locations: str = "") -> None:
        program = find_nginx()
        self._folder = Path(tempfile.mkdtemp(prefix="nginx-"))
        self._folder.chmod(0o755)
        self.port, self.tls_port = free_port(), free_port()
        text = CONFIGURATION.read_text("utf-8")
        changes: dict[str, str | Callable[[re.Match[str]], str]] = {
            rf"\bnode{number}:3030\b": f"127.0.0.1:{ports[(number - 1) % len(ports)]}" for number in (1, 2, 3)
        }
        changes |= {
            r"\blisten 80\b": f"listen 127.0.0.1:{self.port}",
            "/var/log/nginx/": f"{self._folder}/",
            "^ +location / {": lambda found: f"{locations}\n{found[0]}",
            # The default folders need root.
            "^http {": "http {\n"
            + "".join(
                f"{kind}_temp_path {self._folder}/{kind};\n"
                for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            ),
        }
        if certificate is not None:
            key, chain = certificate
            changes |= {
                "#tls ": "",
                r"\blisten 443\b": f"listen 127.0.0.1:{self.tls_port}",
                "/etc/nginx/key.pem": key,
                "/etc/nginx/certificate.pem": chain,
            }
        for old, new in changes.items():
            text, found = re.subn(old, new, text, flags=re.MULTILINE)
            assert found, f"deploy/nginx.conf has no {old}"
        (self._folder / "nginx.conf").write_text(text)
        command = [program, "-p", str(self._folder), "-c", str(self._folder / "nginx.conf")]
        options = f"pid {self._folder}/pid; daemon off;"
        checked = subprocess.run([*command, "-t", "-g", options], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        #: Output of `nginx -t`.
        self.check_output = checked.stderr
        with (self._folder / "stderr").open("wb") as errors:
            self._process = subprocess.Popen([*command, "-g", options], stderr=errors, start_new_session=True)
        until(lambda: listens(self.port), "nginx listens")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def requests(self) -> list[Request]:
        """Return the ended requests, including WebSockets, in the order of their ends."""
        found = []
        for line in (self._folder / "access.log").read_text().splitlines():
            head, _, transport = line.rpartition(" ")
            client, status, rest = head.partition(' "')[0].split(" ", 2)
            # Several tried nodes are written as "a, b : c, d"; the last one answered.
            *nodes, ended, took = rest.replace(",", "").replace(" : ", " ").split()
            addresses = [word for word in nodes if ":" in word]
            node = addresses[-1] if addresses else ""
            found.append(Request(client, int(status), node, float(ended) - float(took), transport))
        return found

    def close(self) -> None:
        # The master also stops its workers.
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(PATIENCE)
        shutil.rmtree(self._folder, ignore_errors=True)


class Nodes(Log):
    """A separate database with the log, ``number`` nodes, and :attr:`nginx` in front of them if ``balanced``."""

    def __init__(self, cluster: Cluster, name: str, number: int = 3, *, balanced: bool = True, **settings: str) -> None:
        if balanced:
            find_nginx()
        settings = {"DRAIN_SECONDS": "0.5", "TRUSTED_PROXIES": "1", "AUTO_INIT": "1"} | settings
        cluster.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        cluster.sql(f"CREATE DATABASE {name}")
        self.url = cluster.url(name)
        self.nodes: list[ServerProcess] = []
        self.nginx: Nginx | None = None
        try:
            for _ in range(number):
                self.nodes.append(ServerProcess(self.url, **settings))
            self.server = self.nodes[0]
            if balanced:
                self.nginx = Nginx([node.port for node in self.nodes])
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        assert self.nginx is not None
        return self.nginx.url

    @property
    def port(self) -> int:
        assert self.nginx is not None
        return self.nginx.port

    def requests(self) -> list[Request]:
        assert self.nginx is not None
        return self.nginx.requests()

    def leader(self) -> ServerProcess | None:
        """Return the node that relays according to the view socketio_pg.nodes."""
        rows = self.sql("SELECT name FROM socketio_pg.nodes WHERE relay")
        pids = {int(name.rpartition(":")[2]) for (name,) in rows}
        running = [node for node in self.nodes if node.process.poll() is None]
        return next((node for node in running if pids & {node.process.pid, *node.worker_pids()}), None)

    def wait_leader(self) -> ServerProcess:
        until(lambda: self.leader() is not None, "a node leads")
        leader = self.leader()
        assert leader is not None
        return leader

    def close(self) -> None:
        if self.nginx is not None:
            self.nginx.close()
        for node in self.nodes:
            node.close()


def assert_no_traceback(nodes: Nodes) -> None:
    # With the lines around it: a library's traceback has many lines, the server's own one.
    found = [
        "\n".join(lines[max(0, number - 2) : number + 30])
        for lines in (node.log.splitlines() for node in nodes.nodes)
        for number, line in enumerate(lines)
        if "Traceback" in line
    ]
    assert not found, "\n".join(found)


@contextlib.contextmanager
def under_load(nodes: Nodes, channel: str, clients: Sequence[Client]) -> Iterator[None]:
    """Publish continuously in the body. At the end, assert that ``clients`` got everything, once and in order."""
    ended, last = threading.Event(), [0]

    def publish() -> None:
        while not ended.wait(0.03):
            nodes.publish(channel, last[0] + 1, last[0] + 1)
            last[0] += 1

    with contextlib.ExitStack() as stack:
        for client in clients:
            stack.callback(client.close)
        for client in clients:
            client.subscribe("one", channel)
        publisher = threading.Thread(target=publish)
        publisher.start()
        try:
            yield
        finally:
            ended.set()
            publisher.join()
        # One more message, so that late duplicates would arrive before it.
        nodes.publish(channel, last[0] + 1, last[0] + 1)
        everything = list(range(1, last[0] + 2))
        for client in clients:
            assert numbers(client, "one", len(everything)) == everything
