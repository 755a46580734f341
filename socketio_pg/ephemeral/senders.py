"""The clients that send ephemeral messages: their identity as others see it, and the channels that they may send to."""

import math
import time
from dataclasses import dataclass, field

from socketio_pg.access import senders
from socketio_pg.access.permissions import Permissions
from socketio_pg.access.sessions import Session, Sessions
from socketio_pg.core.errors import InvalidRequestError
from socketio_pg.ephemeral.messages import EphemeralMessage, Requested

#: Channels of a client whose permission is remembered.
MAX_ALLOWED = 200
#: Seconds for which a permission that may change is remembered here. `access/permissions` remembers it for longer, but
#: asking there takes a green thread.
REMEMBERED_SECONDS = 1.0


@dataclass(eq=False, slots=True)
class Sender:
    """A client with the claims of ``session``; with new claims it is a new sender.

    ``claims_json``: its claims that others see, or the error with which its messages are refused.
    ``allowed``: channel → the time until which the client may send (monotonic), and the mark of the permissions.
    ``asking``: messages by key, of channels whose permission is being asked.
    """

    session: Session
    claims_json: str | InvalidRequestError | None
    allowed: dict[str, tuple[float, int]] = field(default_factory=dict)
    asking: dict[str, dict[str | None, EphemeralMessage]] = field(default_factory=dict)
    #: When it was last sent an error without having requested an acknowledgement.
    told_at: float = -math.inf

    def message(self, channel: str, requested: Requested) -> EphemeralMessage:
        """Return the message of a request. Raises :class:`InvalidRequestError` if the client's claims are too large."""
        if isinstance(self.claims_json, InvalidRequestError):
            raise InvalidRequestError(self.claims_json.message)
        return EphemeralMessage(
            channel, self.session.sid, requested.key, requested.payload_json, self.claims_json, requested.echo
        )


class EphemeralSenders:
    """The senders of one process.

    ``identities`` chooses the claims that others see. ``seconds``: for how long permissions may be remembered
    (PERMISSION_CACHE_SECONDS).
    """

    def __init__(
        self, sessions: Sessions, permissions: Permissions, identities: senders.Senders, seconds: float
    ) -> None:
        self._sessions = sessions
        self._permissions = permissions
        self._identities = identities
        self._seconds = min(seconds, REMEMBERED_SECONDS)
        self._senders: dict[str, Sender] = {}

    def get(self, sid: str) -> Sender | None:
        """Return a client with the claims that it has now; None when it has left."""
        session = self._sessions.get(sid)
        sender = self._senders.get(sid)
        if sender is None or sender.session is not session:
            if session is None:
                return None
            sender = self._senders[sid] = Sender(session, self._claims(session))
        return sender

    def drop(self, sid: str) -> None:
        """Forget a client that has left."""
        self._senders.pop(sid, None)

    @property
    def may_wait(self) -> bool:
        """Whether :meth:`require` may wait, for the database."""
        return self._permissions.may_change

    def knows(self, sender: Sender, channel: object) -> bool:
        """Return whether it is known that a client may send to ``channel``; otherwise :meth:`require` finds out."""
        allowed = sender.allowed.get(channel) if isinstance(channel, str) else None
        if allowed is None or allowed[0] <= time.monotonic():
            return False
        assert isinstance(channel, str)
        return not self._permissions.is_overtaken(channel, allowed[1])

    def require(self, sender: Sender, channel: str) -> None:
        """Return if a client may send to ``channel``, a valid name. Waits only if :attr:`may_wait`.

        Raises :class:`ForbiddenError`, or :class:`DatabaseError` when the permission cannot be checked.
        """
        mark = self._permissions.mark()
        self._permissions.require(sender.session.claims, "ephemeral", channel)
        until = time.monotonic() + self._seconds if self._permissions.may_change else math.inf
        sender.allowed.pop(channel, None)
        sender.allowed[channel] = until, mark
        if len(sender.allowed) > MAX_ALLOWED:
            del sender.allowed[next(iter(sender.allowed))]

    def _claims(self, session: Session) -> str | InvalidRequestError | None:
        try:
            return self._identities.json_of(session.claims)
        except InvalidRequestError as error:
            return error
