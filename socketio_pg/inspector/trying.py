"""Try in the inspector: publishes, says what a client with certain claims may do, makes tokens for development."""

from collections.abc import Mapping
from typing import Any

from flask import request

from socketio_pg.access.authentication import Authenticator
from socketio_pg.access.explaining import Explainer, Explanation
from socketio_pg.access.signing import check_standard, completed, sign, signing_key, standard_claims
from socketio_pg.access.tokens import Claims
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import ConfigurationError, ForbiddenError, InvalidRequestError, UnauthorizedError
from socketio_pg.core.patterns import is_pattern
from socketio_pg.core.publications import requested_publication, requested_wait
from socketio_pg.inspector.routes import Routes
from socketio_pg.pubsub.pubsub import PubSub

#: The longest life of a token, in seconds.
MAX_SECONDS = 2_592_000


class TryApi:
    """The requests of the view Try."""

    def __init__(self, settings: Settings, pubsub: PubSub, authenticator: Authenticator, explainer: Explainer) -> None:
        self._settings = settings
        self._pubsub = pubsub
        self._authenticator = authenticator
        self._explainer = explainer

    def add_to(self, routes: Routes) -> None:
        """Add the requests."""
        routes.post("publish", self.publish, needs="act")
        routes.post("permission", self.permission)
        routes.get("token", self.about_tokens)
        routes.post("token", self.token, needs="act")

    def publish(self, body: dict[str, Any]) -> dict[str, Any]:
        """``POST publish``: as the server itself, whose messages need no permission and have no sender."""
        publication, wait = requested_publication(body), requested_wait(body)
        published = self._pubsub.publish_one(publication, wait=wait)
        return published.to_wire() | {"durable": published.durable}

    def permission(self, body: dict[str, Any]) -> dict[str, Any]:
        """``POST permission``: what a client may do in a channel, and what decides that. Does nothing."""
        channel, actions = body.get("channel"), body.get("actions")
        if not isinstance(channel, str):
            raise InvalidRequestError("channel must be a text: the name of a channel, or a pattern")
        if actions is not None and (not isinstance(actions, list) or not all(isinstance(one, str) for one in actions)):
            raise InvalidRequestError("actions must be a list of texts")
        claims = self._claims(body)
        found = (
            self._explainer.explain(claims, channel)
            if actions is None
            else self._explainer.explain(claims, channel, actions)
        )
        return {
            "channel": channel,
            "pattern": is_pattern(channel),
            "sub": None if claims is None else claims.subject,
            "role": self._role(claims),
            "claims": None if claims is None else dict(claims.claims),
            "actions": to_wire(found),
        }

    def about_tokens(self) -> dict[str, Any]:
        """``GET token``: whether a token can be made here, and what the form needs."""
        reason, algorithm = None, None
        try:
            algorithm = self._signing_key()[1]
        except ForbiddenError as error:
            reason = error.message
        return {
            "possible": reason is None,
            "reason": reason,
            "algorithm": algorithm,
            "seconds": 3_600,
            "most_seconds": MAX_SECONDS,
            "claims": standard_claims(self._settings),
            "authorization": self._settings.authorization,
            "role_claim": self._settings.jwt_role_claim,
            "roles": self._explainer.roles,
        }

    def token(self, body: dict[str, Any]) -> dict[str, Any]:
        """``POST token``."""
        key, algorithm = self._signing_key()
        claims, seconds = body.get("claims"), body.get("seconds", 3_600)
        if not isinstance(claims, dict):
            raise InvalidRequestError("claims must be an object")
        for name in ("exp", "iat", "nbf"):
            if name in claims:
                raise InvalidRequestError(f"claims must not have {name}: seconds says how long the token is good")
        if isinstance(seconds, bool) or not isinstance(seconds, int) or not 1 <= seconds <= MAX_SECONDS:
            raise InvalidRequestError(f"seconds must be a whole number from 1 to {MAX_SECONDS}")
        check_standard(self._settings, claims)
        complete = completed(self._settings, claims, seconds)
        _checked(complete)
        return {"token": sign(complete, key, algorithm), "claims": complete, "expires_at": complete["exp"]}

    def _signing_key(self) -> tuple[str, str]:
        # In production a token would let an operator be any client, also after the inspector's own token has changed.
        if not self._settings.debug:
            raise ForbiddenError("tokens are made in development only (DEBUG=1): your login service signs them")
        if self._authenticator.mode == "off":
            raise ForbiddenError("this server does not use tokens (AUTH=off)")
        if self._authenticator.has_hook:
            raise ForbiddenError("the application authenticates clients itself: tokens are its own")
        try:
            return signing_key(self._settings)
        except ConfigurationError as error:
            raise ForbiddenError(error.message) from error

    def _claims(self, body: Mapping[str, Any]) -> Claims | None:
        """Return the claims that a request names, or those of its token. Raises :class:`InvalidRequestError`."""
        token, claims = body.get("token"), body.get("claims")
        if token is not None:
            if claims is not None:
                raise InvalidRequestError("send either claims or token")
            try:
                return self._authenticator.renew(request.environ, token)
            except UnauthorizedError as error:  # of the token in question, not of the caller
                raise InvalidRequestError(f"the server refuses this token: {error.message}") from None
        if claims is None:
            return None
        if not isinstance(claims, dict):
            raise InvalidRequestError("claims must be an object, or null for an anonymous client")
        return _checked(claims)

    def _role(self, claims: Claims | None) -> str | None:
        if self._settings.authorization != "rls":
            return None
        return self._explainer.role_of(claims)


def to_wire(explanations: list[Explanation]) -> dict[str, Any]:
    """Return explanations as JSON, by action."""
    return {one.action: one.to_wire() for one in explanations}


def _checked(claims: Mapping[str, Any]) -> Claims:
    try:
        return Claims(claims)
    except (ValueError, TypeError) as error:
        raise InvalidRequestError(f"claims: {error}") from None
