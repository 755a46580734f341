"""The interface through which the Socket.IO server asks and tells its owner as connections and clients come and go."""

from typing import Any


class Lifecycle:
    """Follows connections and clients through their lives. A server calls it; a subclass does what its owner needs."""

    def opened(self, eio_sid: str, environ: dict[str, Any]) -> None:
        """An Engine.IO connection is open."""

    def closed(self, eio_sid: str) -> None:
        """An Engine.IO connection is closed."""

    def before_connect(self, eio_sid: str, environ: dict[str, Any]) -> None:
        """A connection sends CONNECT. Raises :class:`SocketIOPGError` to refuse it."""

    def joined(self, eio_sid: str) -> None:
        """A connection has connected to its first namespace."""

    def identify(self, environ: dict[str, Any], auth: object, namespace: str) -> object:
        """Return the identity of a client that sends CONNECT to ``namespace`` with ``auth``. May wait.

        Raises :class:`SocketIOPGError` to refuse the client.
        """
        return None

    def identified(self, sid: str, namespace: str, identity: object) -> None:
        """A client has its sid; the application's own connect handler runs next."""

    def resume(self, eio_sid: str, namespace: str, auth: object, identity: object) -> str | None:
        """Return the sid of the former session that the client continues; None for a new one. May wait."""
        return None

    def restore(self, sid: str, eio_sid: str) -> bool:
        """Restore the former session of an identified client. May wait.

        Return False if the client must get a new session.
        """
        return False

    def restored(self, sid: str, eio_sid: str) -> bool:
        """The application's connect handler has run, and the answer to CONNECT follows. Does not wait.

        Return False if the client cannot get its session any more.
        """
        return False

    def answer(self, sid: str, eio_sid: str, namespace: str) -> dict[str, Any]:
        """Return further fields of the answer to CONNECT. Does not wait."""
        return {}

    def connected(self, sid: str) -> None:
        """A client of the namespace ``/`` was sent the answer to its CONNECT."""

    def before_event(self, sid: str, size: int) -> None:
        """A client sends an event of ``size`` characters. Raises :class:`SocketIOPGError` to refuse it."""

    def disconnected(self, sid: str) -> None:
        """A client of any namespace has left, for whatever reason."""

    def ended(self, sid: str, namespace: str) -> None:
        """The client, or the application, is about to end the client's session with DISCONNECT, and not its connection.

        ``sid`` may be that of a client that is not connected.
        """
