"""Access to the inspector: who is signed in, and whether the person may only read, or also act. Nobody is anonymous.

A person signs in with a token of the settings, or with a client's token that has a role of the settings, and gets a
cookie. Scripts send the token with each request. In development, requests of the own machine need none.
"""

import hashlib
import hmac
import time
from collections.abc import Mapping
from typing import Any

from werkzeug.http import parse_cookie

from socketio_pg.access.authentication import Authenticator
from socketio_pg.access.tokens import Claims, bearer_token
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import ConfigurationError, ForbiddenError, UnauthorizedError
from socketio_pg.engine.origins import is_allowed, is_local
from socketio_pg.gateway.admission import Admission
from socketio_pg.inspector.passes import SESSION, TICKET, Passes, Reader

#: The name of the cookie.
COOKIE = "socketio_pg_inspector"
#: Seconds for which a sign-in and a ticket are good.
SESSION_SECONDS, TICKET_SECONDS = 12 * 3600.0, 30.0
#: The claim of a client of the namespace /inspector that tells what it may do: of the session, not of a client's token.
RIGHT = "socketio_pg_inspector"


class InspectorAccess:
    """Identifies the inspector's readers. Raises :class:`ConfigurationError`."""

    def __init__(self, settings: Settings, authenticator: Authenticator, admission: Admission, passes: Passes) -> None:
        self._settings = settings
        self._authenticator = authenticator
        self._admission = admission
        self._passes = passes
        self._has_roles = bool(settings.inspector_roles or settings.inspector_admin_roles)
        if self._has_roles and authenticator.mode == "off":
            raise ConfigurationError("INSPECTOR_ROLES and INSPECTOR_ADMIN_ROLES need AUTH, and a key for tokens.")

    @property
    def ways(self) -> list[str]:
        """The ways to sign in: ``token``, ``jwt``."""
        tokens = self._settings.inspector_token or self._settings.inspector_admin_token
        return [*(["token"] if tokens else []), *(["jwt"] if self._has_roles else [])]

    # -- requests ------------------------------------------------------------------------------------------------------

    def identify(self, environ: dict[str, Any]) -> Reader | None:
        """Return who has sent a request; None for somebody who is not signed in. May wait.

        Raises :class:`UnauthorizedError` or :class:`ForbiddenError` for a wrong token, :class:`RateLimitedError` after
        too many of them, and :class:`DatabaseUnavailableError` while it cannot be known.
        """
        token = bearer_token(environ.get("HTTP_AUTHORIZATION"))
        if token is not None:
            return self.sign_in(environ, token)
        # Pages of other origins get no cookie (SameSite), but would read as a developer on this machine.
        if not _comes_from_page_of_ours(environ, self._settings.trusted_proxies):
            return None
        for shown in parse_cookie(environ.get("HTTP_COOKIE")).getlist(COOKIE):
            reader = self.open(SESSION, shown)
            if reader is not None:
                return reader
        return self._developer(environ)

    def sign_in(self, environ: dict[str, Any], token: str) -> Reader:
        """Return who has the token. Counts a wrong one for the address. Raises as :meth:`identify`."""
        self._admission.check_attempt(environ)
        with self._admission.authenticating(environ):
            return self._of_token(environ, token)

    def require_same_origin(self, environ: dict[str, Any]) -> None:
        """Return for a request of the inspector's own page, or of a script with a token of its own.

        Raises :class:`ForbiddenError` for pages of other origins, and for a cookie without a word about its page: every
        browser says it with POST.
        """
        if bearer_token(environ.get("HTTP_AUTHORIZATION")) is not None:
            return
        says = "HTTP_ORIGIN" in environ or "HTTP_SEC_FETCH_SITE" in environ
        ours = _comes_from_page_of_ours(environ, self._settings.trusted_proxies)
        if not ours or (not says and COOKIE in parse_cookie(environ.get("HTTP_COOKIE"))):
            raise ForbiddenError("only the inspector's own page may do this")

    def is_secure(self, environ: Mapping[str, Any]) -> bool:
        """Return whether the browser has sent a request over https."""
        scheme = str(environ.get("wsgi.url_scheme") or "")
        if self._settings.trusted_proxies:
            scheme = str(environ.get("HTTP_X_FORWARDED_PROTO") or scheme).partition(",")[0].strip()
        return scheme == "https"

    # -- the namespace -------------------------------------------------------------------------------------------------

    def identify_socket(self, environ: dict[str, Any], auth: object) -> Claims:
        """Return the claims of a client that connects to the namespace: :meth:`reader_of` reads them. May wait.

        Raises as :meth:`identify`. Wrong tokens and tickets are counted by the caller.
        """
        given: dict[str, Any] = auth if isinstance(auth, dict) else {}
        reader = None
        if isinstance(given.get("token"), str):
            reader = self._of_token(environ, given["token"])
        elif isinstance(given.get("ticket"), str):
            reader = self.open(TICKET, given["ticket"])
        if reader is None and is_allowed(environ.get("HTTP_ORIGIN"), environ, None, self._settings.trusted_proxies):
            reader = self._developer(environ)
        if reader is None and "HTTP_ORIGIN" not in environ:
            reader = self._developer(environ)
        if reader is None:
            raise UnauthorizedError("sign in to the inspector: send a ticket of /inspector/api/ticket, or a token")
        claims: dict[str, Any] = {RIGHT: {"act": reader.may_act, "by": reader.by}}
        if reader.name is not None:
            claims["sub"] = reader.name
        if reader.until is not None:
            claims["exp"] = reader.until
        return Claims(claims)

    def reader_of(self, claims: Claims) -> Reader:
        """Return the reader whose claims :meth:`identify_socket` has returned."""
        right = claims.claims[RIGHT]
        return Reader(right["act"], right["by"], claims.subject, claims.expires_at)

    # -- tokens, passes, and the own machine ---------------------------------------------------------------------------

    def open(self, purpose: Any, text: str) -> Reader | None:
        """Return the reader of a pass, unless it has expired, or the settings with which it was got have changed.

        A pass may come from a node with other settings, or from a reader who knows the key: see :class:`Passes`.
        """
        reader = self._passes.open(purpose, text)
        if reader is None:
            return None
        if reader.by == "development":
            return reader if self._settings.debug else None
        valid = self._proofs_of_roles(reader) if reader.by == "jwt" else self._proofs_of_tokens(reader)
        return reader if reader.proof in valid else None

    def _of_token(self, environ: dict[str, Any], token: str) -> Reader:
        settings, until = self._settings, time.time() + SESSION_SECONDS
        for known, may_act in ((settings.inspector_admin_token, True), (settings.inspector_token, False)):
            if known is not None and hmac.compare_digest(known.encode(), token.encode("utf-8", "replace")):
                return Reader(may_act, "token", None, until, _digest(known))
        if not self._has_roles:
            raise UnauthorizedError("the token is wrong")
        claims = self._authenticator.renew(environ, token)
        act = any(has_value(claims.claims, one, settings.jwt_role_claim) for one in settings.inspector_admin_roles)
        if not act and not any(
            has_value(claims.claims, one, settings.jwt_role_claim) for one in settings.inspector_roles
        ):
            raise ForbiddenError("the token has no role that may use the inspector")
        if claims.expires_at is not None:
            until = min(until, claims.expires_at)
        return Reader(act, "jwt", claims.subject, until, self._proof_of_roles())

    def _proofs_of_tokens(self, reader: Reader) -> set[str]:
        settings = self._settings
        token = settings.inspector_admin_token if reader.may_act else settings.inspector_token
        return set() if token is None else {_digest(token)}

    def _proofs_of_roles(self, reader: Reader) -> set[str]:
        settings = self._settings
        roles = settings.inspector_admin_roles if reader.may_act else self._has_roles
        return {self._proof_of_roles()} if roles else set()

    def _proof_of_roles(self) -> str:
        settings = self._settings
        # With the keys: a new one is to end the sign-ins of tokens of the old one.
        keys = (settings.jwt_secret, settings.jwt_public_key, settings.jwks_url)
        roles = [*settings.inspector_roles, "", *settings.inspector_admin_roles]
        return _digest("\0".join([*roles, *(key or "" for key in keys)]))

    def _developer(self, environ: Mapping[str, Any]) -> Reader | None:
        """Return the reader on the own machine in development; None for any other one."""
        if self._settings.debug and not self._settings.trusted_proxies and is_local(environ):
            return Reader(True, "development")
        return None


def _comes_from_page_of_ours(environ: Mapping[str, Any], trusted_proxies: int) -> bool:
    """Return whether no header says that a page of another origin has sent the request."""
    if environ.get("HTTP_SEC_FETCH_SITE", "none") not in ("none", "same-origin"):
        return False
    origin = environ.get("HTTP_ORIGIN")
    return origin is None or is_allowed(origin, environ, None, trusted_proxies)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12, person=b"inspector").hexdigest()


def has_value(claims: Mapping[str, Any], wanted: str, role_claim: str) -> bool:
    """Return whether claims have ``VALUE`` in the role's claim, or ``CLAIM=VALUE``; the claim may be a list of texts.

    ``CLAIM`` may be a path into objects, such as ``realm_access.roles``.
    """
    name, separator, value = wanted.partition("=")
    if not separator:
        name, value = role_claim, wanted
    found: Any = claims
    if name in claims:
        found = claims[name]
    else:
        for key in name.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
    return value in found if isinstance(found, list) else isinstance(found, str) and found == value
