"""Authenticates clients and checks their permissions; combines the other modules of this folder."""

import json
import logging
from collections.abc import Callable, Collection, Sequence

from flask import Flask

from socketio_pg.access.authentication import Authenticate, Authenticator
from socketio_pg.access.channel_rights import ChannelRights
from socketio_pg.access.permissions import Permissions
from socketio_pg.access.policies import Policies
from socketio_pg.access.questions import Action
from socketio_pg.access.rechecks import Rechecks
from socketio_pg.access.senders import Senders
from socketio_pg.access.sessions import Session, Sessions
from socketio_pg.core import green
from socketio_pg.core.backoff import Backoff
from socketio_pg.core.channels import PERMISSIONS_CHANNEL
from socketio_pg.core.config import Settings
from socketio_pg.core.errors import DatabaseError, DatabaseUnavailableError, LogNotInstalledError, UntrustedSchemaError
from socketio_pg.core.problems import Problem
from socketio_pg.pubsub.pubsub import PubSub

logger = logging.getLogger("socketio_pg.access")


class Access:
    """The identity and permissions of one server's clients.

    ``revoke(sid, channel, action)`` ends what is no longer allowed: a subscription, or one of the further
    ``actions(sid, channel)`` of a subscribed client. ``warn_expiring(session)`` notifies a client that its token is
    about to expire; ``expire(session)`` disconnects it once the token has expired.
    Raises :class:`ConfigurationError`.
    """

    #: Seconds between two attempts to evaluate the policies; doubles up to the second value.
    backoff = (0.2, 5.0)

    def __init__(
        self,
        settings: Settings,
        app: Flask,
        hook: Authenticate | None,
        pubsub: PubSub,
        *,
        actions: Callable[[str, str], Collection[Action]],
        revoke: Callable[[str, str, Action], None],
        warn_expiring: Callable[[Session], None],
        expire: Callable[[Session], None],
    ) -> None:
        self.authenticator = Authenticator(settings, app, hook)
        self.senders = Senders(settings.from_claims)
        self.sessions = Sessions(settings.jwt_leeway, warn_expiring, expire)
        self.policies = Policies(pubsub.database, settings.permission_timeout, self._check)
        self.permissions = Permissions(settings, self.authenticator.mode, self.policies)
        self.rechecks = Rechecks(
            self.sessions, pubsub.hub, self.permissions, actions, revoke, settings.permission_recheck_seconds
        )
        self.channel_rights = ChannelRights(self.permissions, self.sessions, settings.permission_recheck_seconds)
        self._pubsub = pubsub
        self._preparing = green.Worker()
        self._checking = green.Worker()
        self._started = False
        self._problem = Problem("permissions cannot be checked yet") if self.permissions.may_change else None

    @property
    def problem(self) -> Problem | None:
        """The reason why permissions cannot be checked, for the operator; None when they can."""
        return self._problem

    def start(self) -> None:
        """Fetch the keys and check that policies can be evaluated, in the background. Call it after any fork."""
        if self._started:
            return
        self._started = True
        self._preparing.start(self.authenticator.prepare)
        if self.permissions.may_change:
            self._pubsub.receive_logged(
                PERMISSIONS_CHANNEL, self._permissions_changed, lambda: self.rechecks.permissions_changed(None)
            )
            self.rechecks.start()
            self._check()

    def stop(self) -> None:
        """Stop all green threads and close the connections."""
        self._started = False
        self._preparing.stop()
        self._checking.stop()
        self.rechecks.stop()
        self.policies.stop()

    def _permissions_changed(self, channels: Sequence[str]) -> None:
        """Handle payloads of ``socketio_pg.recheck()``: names of channels as JSON, empty for all channels."""
        for channel in {json.loads(text) for text in channels}:
            self.rechecks.permissions_changed(channel or None)

    def _check(self) -> None:
        """Check whether policies can be evaluated, and retry in the background until they can."""
        self._checking.start(self._run)

    def _run(self) -> None:
        backoff = Backoff(*self.backoff)
        logged: str | None = None
        while True:
            try:
                self.policies.check(self.permissions.roles)
                self._problem = None
                return
            except UntrustedSchemaError as error:
                self._problem = Problem.of(error)
            except LogNotInstalledError:
                self._problem = Problem("AUTHORIZATION=rls needs the schema of this version: run 'socketio-pg init'")
            except DatabaseUnavailableError as error:
                self._problem = Problem.of(error, "permissions cannot be checked: ")
            except DatabaseError as error:
                self._problem = Problem.of(
                    error, "permissions cannot be checked: ", "; see 'socketio-pg init --server-role'"
                )
            if self._problem != logged:
                logger.warning("%s", self._problem)
                logged = self._problem
            green.sleep(backoff.next())
