"""Rechecks the permissions of existing subscriptions, periodically and when permissions have changed."""

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Sequence

from socketio_pg.access.permissions import Permissions
from socketio_pg.access.questions import Action
from socketio_pg.access.sessions import Session, Sessions
from socketio_pg.access.tokens import Claims
from socketio_pg.core import green
from socketio_pg.core.errors import DatabaseUnavailableError, SocketIOPGError
from socketio_pg.pubsub.hub import Hub

logger = logging.getLogger("socketio_pg.rechecks")


class Rechecks:
    """Ends with ``revoke(sid, channel, action)`` what is no longer allowed: a subscription, or another action.

    ``actions(sid, channel)`` are further actions for which a subscribed client needs the permission.

    ``interval``: seconds between two checks of all subscriptions; 0: only when :meth:`permissions_changed` is called.
    A subscription whose permission cannot be checked is kept, because the last known decision allowed it, and is
    checked again after :attr:`retry` seconds.
    """

    #: Seconds between two checks of any kind.
    min_pause = 0.2
    #: The pause between two checks of everything: a multiple of the last one's duration, and the maximum in seconds.
    pause_factor = 4.0
    max_pause = 5.0
    #: Seconds after which unanswered questions are asked again.
    retry = 5.0
    #: Questions that are asked together; the next batch queues behind other callers' questions.
    batch_size = 100

    def __init__(
        self,
        sessions: Sessions,
        hub: Hub,
        permissions: Permissions,
        actions: Callable[[str, str], Collection[Action]],
        revoke: Callable[[str, str, Action], None],
        interval: float,
    ) -> None:
        self._sessions = sessions
        self._hub = hub
        self._permissions = permissions
        self._actions = actions
        self._revoke = revoke
        self._interval = interval
        self._worker = green.Worker()
        self._wanted = green.Event()
        #: Single channels to check, and when to check everything (by the monotonic clock).
        self._channels: set[str] = set()
        self._all_at = float("inf")
        #: The earliest time of the next check of everything, so that expensive checks are spaced out.
        self._not_before = 0.0
        self._warned = False

    def start(self) -> None:
        """Start the green thread."""
        if not self._worker.running:
            self._schedule_all(self._interval or float("inf"))
            self._worker.start(self._run)

    def stop(self) -> None:
        """Stop the green thread."""
        self._worker.stop()

    def permissions_changed(self, channel: str | None) -> None:
        """Check soon: permissions for ``channel`` (None: for any) have changed."""
        self._permissions.forget(channel)
        if channel is None:
            self._schedule_all(0.0)
        else:
            self.recheck(channel)

    def recheck(self, channel: str) -> None:
        """Check the subscriptions of ``channel`` soon: the last decisions about them may be stale."""
        self._channels.add(channel)
        self._wanted.send()

    def ask(self, claims: Claims | None, channels: Collection[str]) -> dict[str, bool]:
        """Return for each of ``channels`` whether a client with ``claims`` may subscribe. Waits.

        Raises :class:`DatabaseUnavailableError` or :class:`DatabaseError` when one of them cannot be checked.
        """
        allowed = {}
        for channel, answer in zip(
            channels, self._ask([(claims, channel, "subscribe") for channel in channels]), strict=True
        ):
            if isinstance(answer, SocketIOPGError):
                raise answer
            allowed[channel] = answer
        return allowed

    # -- the green thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            wait = max(self._all_at, self._not_before) - time.monotonic()
            if wait > 0 and not self._channels:
                with contextlib.suppress(green.TimedOut):
                    self._wanted.wait(None if wait == float("inf") else wait)
            self._wanted = green.Event()
            try:
                self._check_channels()
                if time.monotonic() >= max(self._all_at, self._not_before):
                    self._check_all()
            except Exception:  # a bug: permissions must still be checked the next time
                logger.exception("checking permissions again failed")
                self._schedule_all(self.retry)
            green.sleep(self.min_pause)

    def _schedule_all(self, seconds: float) -> None:
        self._all_at = min(self._all_at, time.monotonic() + seconds)
        self._wanted.send()

    def _check_channels(self) -> None:
        channels, self._channels = self._channels, set()
        if not self._check_batches(self._subscriptions(channels & self._hub.channels()), everything=False):
            self._schedule_all(self.retry)

    def _check_all(self) -> None:
        began = time.monotonic()
        self._all_at = began + (self._interval or float("inf"))
        answered = self._check_batches(self._subscriptions(self._hub.channels()), everything=True)
        if not answered:
            self._schedule_all(self.retry)
            if not self._warned:
                logger.warning("permissions cannot be checked again now: subscriptions are kept; retrying")
        self._warned = not answered
        now = time.monotonic()
        self._not_before = now + min(self.max_pause, self.pause_factor * (now - began))

    def _subscriptions(self, channels: Collection[str]) -> list[tuple[Session, str, Action]]:
        return [
            (session, channel, action)
            for channel in channels
            for subscriber in self._hub.subscribers(channel)
            if isinstance(subscriber, str) and (session := self._sessions.get(subscriber)) is not None
            for action in ("subscribe", *self._actions(subscriber, channel))
        ]

    def _check_batches(self, subscriptions: Sequence[tuple[Session, str, Action]], *, everything: bool) -> bool:
        """Return whether all questions were answered."""
        answered = True
        for start in range(0, len(subscriptions), self.batch_size):
            batch = subscriptions[start : start + self.batch_size]
            answers = self._ask([(session.claims, channel, action) for session, channel, action in batch])
            failed = 0
            for (session, channel, action), answer in zip(batch, answers, strict=True):
                current = self._sessions.get(session.sid)
                if isinstance(answer, SocketIOPGError):
                    failed += 1
                elif current is not None and current is not session:
                    self.recheck(channel)  # the client has new claims by now
                elif not answer and current is session:
                    self._revoke(session.sid, channel, action)
            answered = answered and not failed
            if failed == len(batch):
                break  # the database is unreachable or overloaded: each further batch would time out as well
            if everything and self._channels:
                self._check_channels()  # explicitly requested checks do not wait for the rest
        return answered

    def _ask(self, questions: Sequence[tuple[Claims | None, str, Action]]) -> list[bool | SocketIOPGError]:
        unanswered = DatabaseUnavailableError("permissions cannot be checked at the moment")
        answers: list[bool | SocketIOPGError] = [unanswered] * len(questions)
        all_done = green.Event()
        left = len(questions)

        def ask(index: int, claims: Claims | None, channel: str, action: Action) -> None:
            nonlocal left
            try:
                answers[index] = self._permissions.recheck(claims, channel, action)
            except SocketIOPGError as error:
                answers[index] = error
            finally:
                left -= 1
                if not left:
                    all_done.send()

        # All at the same time, so that they get into one batch of `policies`.
        for index, (claims, channel, action) in enumerate(questions):
            green.run_soon(ask, index, claims, channel, action)
        if questions:
            all_done.wait()
        return answers
