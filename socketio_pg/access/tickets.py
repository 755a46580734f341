"""Tickets: what a page puts into the address of a stream in place of a token, which it must keep out of addresses.

A ticket has the claims of the client and the channels, sealed with the cluster key, so that any node accepts it. It is
good for the first request of some seconds. An EventSource connects again with the same address, for hours: the answer
to its first request sets a cookie, and with that the ticket remains good. So an address in a log is worth nothing.
"""

import base64
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from socketio_pg.access.tokens import Claims
from socketio_pg.core.errors import InvalidRequestError, UnauthorizedError
from socketio_pg.core.sealing import Sealing

#: What the texts are sealed for.
_TICKET, _PROOF = "socketio_pg_ticket", "socketio_pg_ticket_proof"
#: The maximum length of a ticket, which gunicorn accepts in an address.
MAX_TICKET = 6_000


@dataclass(frozen=True, slots=True)
class Ticket:
    """An opened ticket. ``fresh``: it needs no cookie yet."""

    claims: Claims | None
    channels: frozenset[str]
    fresh: bool


class Tickets:
    """Issues and verifies tickets and the proofs in cookies.

    All methods wait for the first cluster key, and raise :class:`ClusterKeyError` when there is none.
    """

    #: Seconds for which a ticket is good without its cookie, and for which a cookie is good, which each answer renews.
    seconds, proof_seconds = 30, 86_400
    #: Seconds by which the clocks of two nodes may differ.
    clocks = 5.0

    def __init__(self, sealing: Sealing) -> None:
        self._sealing = sealing

    def issue(self, claims: Claims | None, channels: Sequence[str]) -> str:
        """Return a ticket for ``channels``. Raises :class:`InvalidRequestError`."""
        found = None if claims is None else dict(claims.claims)
        ticket = self._seal(_TICKET, {"claims": found, "channels": list(channels), "at": time.time()})
        if len(ticket) > MAX_TICKET:
            raise InvalidRequestError("the claims of the token and the channels are too large for a ticket")
        return ticket

    def open(self, text: str) -> Ticket:
        """Return a ticket. Raises :class:`UnauthorizedError`."""
        found = self._open(_TICKET, text)
        if found is None:
            raise UnauthorizedError("the ticket is not valid: get a new one with POST /api/tickets")
        claims = None if found["claims"] is None else Claims(found["claims"])
        age = time.time() - found["at"]
        return Ticket(claims, frozenset(found["channels"]), -self.clocks <= age <= self.seconds + self.clocks)

    def prove(self, claims: Claims | None) -> tuple[str, int]:
        """Return a proof, for a cookie, that a ticket of this client was used in time, and its lifetime in seconds."""
        until = time.time() + self.proof_seconds
        if claims is not None and claims.expires_at is not None:
            until = min(until, claims.expires_at)
        proof = self._seal(_PROOF, {"of": _digest(claims), "until": until})
        return proof, max(0, int(until - time.time()))

    def require_proof(self, shown: Sequence[str], claims: Claims | None) -> None:
        """Return if one of the texts is such a proof for the client with these claims. Raises UnauthorizedError."""
        for text in shown:
            found = self._open(_PROOF, text)
            if found is not None and found["of"] == _digest(claims) and time.time() < found["until"]:
                return
        raise UnauthorizedError("the ticket has expired: get a new one with POST /api/tickets")

    def _seal(self, purpose: str, content: dict[str, Any]) -> str:
        sealed = self._sealing.seal(purpose, json.dumps(content, separators=(",", ":")))
        return base64.urlsafe_b64encode(sealed.encode()).decode().rstrip("=")

    def _open(self, purpose: str, text: str) -> dict[str, Any] | None:
        if len(text) > MAX_TICKET or not text.isascii():
            return None
        try:
            sealed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
        except ValueError:
            return None
        opened = self._sealing.open_shown(purpose, sealed)
        found: dict[str, Any] | None = None if opened is None else json.loads(opened)
        return found


def _digest(claims: Claims | None) -> str:
    return hashlib.blake2b(b"" if claims is None else claims.text.encode(), digest_size=16).hexdigest()
