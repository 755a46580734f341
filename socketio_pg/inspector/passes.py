"""The inspector's cookies and tickets: what a signed-in person may do, sealed so that every node accepts it.

Sealed with the cluster key. A process that has none, because the database was down when it started or has no schema,
seals with a key derived from the secret settings: these are the same on all nodes, so a person can sign in during an
outage. A reader knows INSPECTOR_TOKEN: alone it makes no key for passes of people who may act.
"""

import base64
import json
import os
import time
from dataclasses import dataclass
from typing import Literal

from socketio_pg.core.config import Settings
from socketio_pg.core.errors import ClusterKeyError
from socketio_pg.core.seal import Key, Seal, SealError
from socketio_pg.core.sealing import Sealing

#: What the texts are sealed for.
Purpose = Literal["socketio_pg_inspector", "socketio_pg_inspector_ticket"]
SESSION: Purpose = "socketio_pg_inspector"
TICKET: Purpose = "socketio_pg_inspector_ticket"
#: The maximum length of a text that is opened.
MAX_PASS = 4_000
_IDENTITY = "inspector"


@dataclass(frozen=True, slots=True)
class Reader:
    """A signed-in person or script.

    ``by``: with a token of the settings, with a client's token (jwt), or on the own machine in development. ``name`` is
    the claim sub of a client's token. ``until``: when this ends, in seconds since 1970; None: never. ``proof``: what
    the settings must still have, see :meth:`InspectorAccess.open`.
    """

    may_act: bool
    by: Literal["token", "jwt", "development"]
    name: str | None = None
    until: float | None = None
    proof: str = ""

    def __str__(self) -> str:
        return self.by if self.name is None else f"{self.by} of {self.name}"


class Passes:
    """Seals and opens passes. ``sealing`` has the cluster key."""

    def __init__(self, settings: Settings, sealing: Sealing) -> None:
        self._sealing = sealing
        secrets = [settings.inspector_admin_token, settings.jwt_secret, *settings.cluster_key]
        if any(secrets) or not (settings.debug or settings.inspector_admin_roles):
            secrets.append(settings.inspector_token)
        known = "\0".join(filter(None, secrets))
        self._own = Seal()
        key = Key.from_text(f"inspector\0{known}") if known else Key.from_bytes(os.urandom(32))
        self._own.use(_IDENTITY, [key])

    def issue(self, purpose: Purpose, reader: Reader, seconds: float) -> str:
        """Return a pass for ``reader`` that is good for ``seconds``. It is URL-safe text."""
        content = {
            "act": reader.may_act,
            "by": reader.by,
            "name": reader.name,
            "until": reader.until,
            "proof": reader.proof,
            "good": time.time() + seconds,
        }
        text = json.dumps(content, separators=(",", ":"))
        sealed = self._sealing.seal(purpose, text) if self._sealing.ready else self._own.seal(purpose, text)
        return base64.urlsafe_b64encode(sealed.encode()).decode().rstrip("=")

    def open(self, purpose: Purpose, text: str) -> Reader | None:
        """Return the reader of a pass; None if it is not good: expired, for another purpose, or of another cluster.

        Waits for the cluster key, for up to two seconds. Raises :class:`ClusterKeyError` when the pass was sealed with
        one and there is none yet.
        """
        if len(text) > MAX_PASS or not text.isascii():
            return None
        try:
            sealed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii")
        except ValueError:
            return None
        if sealed.split(" ", 2)[1:2] == [_IDENTITY]:
            opened = self._opened(purpose, sealed)
        else:
            opened = self._sealing.open_shown(purpose, sealed)
        if opened is None:
            return None
        found = json.loads(opened)
        until = found["until"]
        if time.time() >= found["good"] or (until is not None and time.time() >= until):
            return None
        return Reader(found["act"], found["by"], found["name"], until, found["proof"])

    def _opened(self, purpose: Purpose, sealed: str) -> str | None:
        try:
            return self._own.open(purpose, sealed, replayable=True)
        except (SealError, ClusterKeyError):
            return None
