"""A script's and a browser's requests to the inspector."""

from typing import Any

import requests

from tests.support.clients import SocketClient
from tests.support.nodes import Nginx
from tests.support.patience import PATIENCE
from tests.support.server import ServerProcess

TOKEN = "the reader's token: 0123456789"
ADMIN_TOKEN = "the operator's token: 0123456789"
TOKENS = {"INSPECTOR_TOKEN": TOKEN, "INSPECTOR_ADMIN_TOKEN": ADMIN_TOKEN}
COOKIE = "socketio_pg_inspector"


class Inspector:
    """Requests to the inspector of one server: as a script with ``token``, or without one like a browser's page."""

    def __init__(self, server: ServerProcess | Nginx, token: str | None = None, prefix: str = "") -> None:
        self.url = f"{server.url}{prefix}/inspector"
        self.session = requests.Session()
        self._headers = {"Authorization": f"Bearer {token}"} if token else {"Origin": server.url}

    def get(self, path: str, **options: Any) -> requests.Response:
        return self._send("GET", path, **options)

    def post(self, path: str, body: object = None, **options: Any) -> requests.Response:
        return self._send("POST", path, json={} if body is None else body, **options)

    def read(self, path: str, **options: Any) -> dict[str, Any]:
        """Return the answer of a GET that must succeed."""
        return _read(self.get(path, **options))

    def do(self, path: str, body: object = None, **options: Any) -> dict[str, Any]:
        """Return the answer of a POST that must succeed."""
        return _read(self.post(path, body, **options))

    def _send(self, method: str, path: str, headers: dict[str, str] | None = None, **options: Any) -> requests.Response:
        return self.session.request(
            method, f"{self.url}/api/{path}", headers=self._headers | (headers or {}), timeout=PATIENCE, **options
        )


def _read(answer: requests.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def refused(answer: requests.Response) -> tuple[int, str]:
    """Return status and code of an answer that is an error."""
    return answer.status_code, answer.json()["error"]["code"]


class InspectorClient(SocketClient):
    """A client of the namespace /inspector."""

    NAMESPACE = "/inspector"
    EVENTS = (
        "now", "tail", "tail_gap", "tail_live", "tail_waiting", "error", "connect", "disconnect", "connect_error",
    )  # fmt: skip

    def do(self, event: str, **request: Any) -> dict[str, Any]:
        """Send an event that must succeed. Return its acknowledgement."""
        answer: dict[str, Any] = self.call(event, request)
        assert answer["ok"], answer
        return answer

    def refusal(self, event: str, **request: Any) -> str:
        """Send an event that must be refused. Return the code of the error."""
        answer = self.call(event, request)
        assert not answer["ok"], answer
        return str(answer["error"]["code"])
