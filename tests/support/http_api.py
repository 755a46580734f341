"""A client of the HTTP API."""

import json
from typing import Any
from urllib.parse import quote

import requests

from tests.support.patience import PATIENCE
from tests.support.server import ServerProcess


class HttpApi:
    """A client of ``server`` that sends ``token`` and ``headers`` with each request."""

    def __init__(self, server: ServerProcess, token: str | None = None, **headers: str) -> None:
        self.url = server.url
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def publish(self, channel: Any, payload: Any, **more: Any) -> requests.Response:
        return self.post({"channel": channel, "payload": payload, **more})

    def publish_together(self, *messages: Any) -> requests.Response:
        return self.post({"messages": list(messages)})

    def post(self, body: Any, **headers: str) -> requests.Response:
        """Post ``body``: bytes unchanged, anything else as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        whole = {"Content-Type": "application/json"} | self._headers | headers
        return requests.post(f"{self.url}/api/publish", data, headers=whole, timeout=PATIENCE)

    def messages(self, channel: str, **query: Any) -> requests.Response:
        path = f"{self.url}/api/channels/{quote(channel, safe='')}/messages"
        return requests.get(path, query, headers=self._headers, timeout=PATIENCE)

    def page(self, channel: str, **query: Any) -> dict[str, Any]:
        answer = self.messages(channel, **query)
        assert answer.status_code == 200, answer.text
        page: dict[str, Any] = answer.json()
        return page


def refusal(answer: requests.Response) -> tuple[int, str]:
    """Return status and code of an error. Assert that its body is as documented in docs/http.md."""
    assert answer.headers["Content-Type"] == "application/json"
    error = answer.json()["error"]
    assert {"code", "message"} <= error.keys() <= {"code", "message", "channel"}
    assert error["message"]
    return answer.status_code, error["code"]


def payloads(page: dict[str, Any]) -> list[Any]:
    return [message["payload"] for message in page["messages"]]


def after(page: dict[str, Any]) -> dict[str, Any]:
    """Return the query for the messages after ``page``."""
    return {"since": page["position"], "epoch": page["epoch"]}
