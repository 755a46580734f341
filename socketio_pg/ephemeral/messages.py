"""An ephemeral message, and the request to send one. Pure, no I/O."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from socketio_pg.core.errors import InvalidRequestError, PayloadTooLargeError
from socketio_pg.core.messages import encode_payload, quick_json
from socketio_pg.core.publications import validate_name


@dataclass(slots=True)
class EphemeralMessage:
    """One message, shared by all its receivers: do not change it.

    ``sender`` is the sid of its client, and ``claims_json`` the claims of the client that others see, as a JSON object;
    None if there are none. ``echo``: the sender gets it too.
    """

    channel: str
    sender: str
    key: str | None
    payload_json: str
    claims_json: str | None
    echo: bool = False

    def packet(self, payload_json: str | None = None) -> str:
        """Return the event as a Socket.IO packet, by default with the payload as it is."""
        payload = self.payload_json if payload_json is None else payload_json
        key = "" if self.key is None else f',"key":{_json(self.key)}'
        claims = "" if self.claims_json is None else f"{self.claims_json[1:-1]},"
        return (
            f'2["event",{{"channel":{_json(self.channel)},"payload":{payload},"ephemeral":true{key},'
            f'"from":{{{claims}"client":{_json(self.sender)}}}}}]'
        )


def to_batch(messages: Iterable[EphemeralMessage]) -> dict[str, list[Any]]:
    """Return messages as JSON for other processes."""
    batch: dict[str, list[Any]] = {}
    for one in messages:
        batch.setdefault(one.channel, []).append([one.sender, one.key, one.payload_json, one.claims_json])
    return batch


def from_batch(batch: Any) -> Iterator[EphemeralMessage]:
    """Yield the messages that another process has sent, without those that this version does not know."""
    for channel, items in batch.items() if isinstance(batch, dict) else ():
        for item in items if isinstance(items, list) else ():
            if isinstance(item, list) and len(item) >= 4:
                sender, key, payload, claims = item[:4]
                if all(isinstance(one, str) for one in (sender, key or "", payload, claims or "")):
                    yield EphemeralMessage(channel, sender, key, payload, claims)


@dataclass(frozen=True, slots=True)
class Requested:
    """The fields of a request besides its channel."""

    payload_json: str
    key: str | None
    echo: bool


def is_ephemeral(request: Mapping[str, Any]) -> bool:
    """Return whether a request to publish is for an ephemeral message. Raises :class:`InvalidRequestError`."""
    wanted = request.get("ephemeral")
    if wanted is not None and not isinstance(wanted, bool):
        raise InvalidRequestError("ephemeral must be true or false")
    return wanted is True


def requested_ephemeral(request: Mapping[str, Any], max_bytes: float) -> Requested:
    """Validate ``{payload, key?, echo?}``, with at most ``max_bytes`` of payload.

    Raises :class:`InvalidRequestError` or :class:`PayloadTooLargeError`.
    """
    if "payload" not in request:
        raise InvalidRequestError("payload is missing")
    if request.get("durable") is True or request.get("id") is not None:
        raise InvalidRequestError("an ephemeral message is not stored: it has no id and is not durable")
    echo = request.get("echo")
    if echo is not None and not isinstance(echo, bool):
        raise InvalidRequestError("echo must be true or false")
    key = request.get("key")
    payload_json = _payload(request["payload"])
    size = len(payload_json) if payload_json.isascii() else len(payload_json.encode())
    if size > max_bytes:
        raise PayloadTooLargeError(
            f"payload has {size} bytes of UTF-8 as JSON; an ephemeral message has at most {max_bytes}"
        )
    return Requested(payload_json, None if key is None else validate_name(key, "key"), echo is True)


def _payload(payload: object) -> str:
    text = quick_json(payload)
    # orjson writes NaN as null, which encode_payload() refuses.
    return encode_payload(payload) if text is None or "null" in text else text


def _json(text: str) -> str:
    return orjson.dumps(text).decode()
