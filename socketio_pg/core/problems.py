"""Why a part of the server does not work: a text for the operator, and one that anyone may read."""

from socketio_pg.core.errors import SocketIOPGError
from socketio_pg.core.references import public_text


class Problem(str):
    """Why a part of the server does not work, as text for the operator. ``public`` is the text that anyone may read."""

    public: str
    __slots__ = ("public",)

    def __new__(cls, text: str, public: str | None = None) -> "Problem":
        """Return a problem; without ``public`` anyone may read ``text``."""
        made = super().__new__(cls, text)
        made.public = text if public is None else public
        return made

    @classmethod
    def of(cls, error: Exception, before: str = "", after: str = "") -> "Problem":
        """Return a problem for ``error``, whose detail anyone else sees as a reference to the log."""
        if isinstance(error, SocketIOPGError):
            public = public_text(error.message, error.detail)
        else:
            public = public_text("an internal failure", f"{type(error).__name__}: {error}")
        return cls(f"{before}{error}{after}", f"{before}{public}{after}")
