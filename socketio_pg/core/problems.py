"""Why a part of the server does not work: a text for the operator, and one that anyone may read."""

from collections.abc import Callable

from socketio_pg.core.errors import SocketIOPGError
from socketio_pg.core.references import public_text


class Problem(str):
    """Why a part of the server does not work, as text for the operator. See :attr:`public` for others."""

    _make_public: Callable[[], str]
    __slots__ = ("_make_public",)

    def __new__(cls, text: str, public: str | None = None) -> "Problem":
        """Return a problem; without ``public`` anyone may read ``text``."""
        made = super().__new__(cls, text)
        shown = text if public is None else public
        made._make_public = lambda: shown
        return made

    @property
    def public(self) -> str:
        """The text that anyone may read. It may have a reference, which is logged when this is read."""
        return self._make_public()

    @classmethod
    def of(cls, error: Exception, before: str = "", after: str = "") -> "Problem":
        """Return a problem for ``error``, whose detail anyone else sees as a reference to the log."""
        if isinstance(error, SocketIOPGError):
            message, detail = error.message, error.detail
        else:
            message, detail = "an internal failure", f"{type(error).__name__}: {error}"
        made = cls(f"{before}{error}{after}")
        made._make_public = lambda: f"{before}{public_text(message, detail)}{after}"
        return made
