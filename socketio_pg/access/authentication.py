"""Authenticates clients, by a token (verified by `tokens`) or by the application's own login."""

import logging
from collections.abc import Callable
from typing import Any, TypeAlias

from flask import Flask, Request, request

from socketio_pg.access.tokens import Claims, TokenVerifier, bearer_token
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import ConfigurationError, InvalidRequestError, UnauthorizedError

logger = logging.getLogger("socketio_pg.authentication")

#: An application's own login. It gets Flask's request of the handshake, within its request context, and the `auth` that
#: the client sent (untrusted, usually an object or None). Returns the client's claims, or None for an anonymous client;
#: may raise UnauthorizedError.
Authenticate: TypeAlias = Callable[[Request, Any], Claims | None]


class Authenticator:
    """Authenticates clients as AUTH says. ``hook`` replaces tokens. Raises :class:`ConfigurationError`."""

    def __init__(self, settings: Settings, app: Flask, hook: Authenticate | None = None) -> None:
        self._app = app
        self._settings = settings
        self._hook = hook
        self._verifier = TokenVerifier(settings)
        #: The effective value of AUTH: ``off``, ``optional`` or ``required``.
        self.mode = "required" if hook is not None and settings.auth is None else settings.authentication()
        if self.mode != "off" and hook is None and not self._verifier.algorithms:
            raise ConfigurationError(
                f"AUTH={self.mode} needs a key: set JWT_SECRET, JWT_PUBLIC_KEY or JWKS_URL, or give SocketServer a "
                "function as authenticate=."
            )
        if self.mode == "off" and settings.authorization == "claims":
            raise ConfigurationError("AUTHORIZATION=claims needs claims: set AUTH and a key.")
        self._warn(settings)

    @property
    def has_hook(self) -> bool:
        """Whether the application authenticates clients itself."""
        return self._hook is not None

    def _warn(self, settings: Settings) -> None:
        has_key = bool(settings.jwt_secret or settings.jwt_public_key or settings.jwks_url)
        if self._hook is not None and has_key and self.mode != "off":
            logger.warning(
                "JWT_SECRET, JWT_PUBLIC_KEY and JWKS_URL are not used: the application authenticates clients"
            )
        if self.mode == "off" and (has_key or self._hook is not None):
            logger.warning("AUTH=off: clients are not authenticated, although a key or authenticate= is configured")
        if self.mode != "off" and settings.jwks_url is not None and not settings.jwt_audience:
            logger.warning("JWT_AUDIENCE is not set: tokens that the issuer made for other applications are accepted")
        if self.mode != "off" and self._hook is not None and "*" in (settings.cors_allowed_origins or ()):
            logger.warning("CORS_ALLOWED_ORIGINS=*: any page on the web can use the login in its visitors' cookies")

    def warn_if_open(self, where: str) -> None:
        """Log a warning when every client is admitted; ``where`` has the addresses that the server listens on."""
        if self.mode != "off":
            return
        settings = self._settings
        publishing = "" if settings.publish in ("off", "authenticated") else " and publish to it"
        channels = "every channel" if settings.authorization == "off" else "the channels of ANONYMOUS_ROLE"
        logger.warning(
            "AUTH is off: any client that reaches %s can subscribe to %s%s; set AUTH=required, and a key (JWT_SECRET, "
            "JWT_PUBLIC_KEY or JWKS_URL), to require tokens",
            where,
            channels,
            publishing,
        )

    def prepare(self) -> None:
        """Fetch the keys if they come from JWKS_URL. May wait."""
        if self.mode != "off" and self._hook is None:
            self._verifier.prepare()

    def identify(self, environ: dict[str, Any], auth: object) -> Claims | None:
        """Return the claims of the client with the handshake ``environ`` and ``auth``; None: anonymous. May wait.

        Raises :class:`UnauthorizedError` or :class:`AuthenticationUnavailableError`.
        """
        if self.mode == "off":
            return None
        claims = self._ask_hook(environ, auth) if self._hook is not None else self._verify(environ, auth)
        if claims is None and self.mode == "required":
            raise UnauthorizedError("a token is required" if self._hook is None else "sign in first")
        return claims

    def renew(self, environ: dict[str, Any], token: object) -> Claims:
        """Return the new claims of a connected client that has sent ``token``. May wait.

        Raises :class:`InvalidRequestError` with AUTH=off, and as :meth:`identify`.
        """
        if self.mode == "off":
            raise InvalidRequestError("this server does not use tokens (AUTH=off)")
        claims = self._verifier.verify(token) if self._hook is None else self._ask_hook(environ, {"token": token})
        if claims is None:
            raise UnauthorizedError("sign in first")
        return claims

    def _verify(self, environ: dict[str, Any], auth: object) -> Claims | None:
        token = auth.get("token") if isinstance(auth, dict) else None
        if token is None:
            token = bearer_token(environ.get("HTTP_AUTHORIZATION"))
        # An empty token is verified, and refused: the page meant to send one.
        return None if token is None else self._verifier.verify(token)

    def _ask_hook(self, environ: dict[str, Any], auth: object) -> Claims | None:
        assert self._hook is not None
        with self._app.request_context(environ):
            claims = self._hook(request, auth)
        if claims is not None and not isinstance(claims, Claims):
            raise TypeError(f"authenticate() must return Claims or None, not {type(claims).__name__}")
        return claims
