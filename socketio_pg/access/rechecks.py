"""Asks now and then, and when it is told to, whether those who subscribe still may."""

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Sequence

from socketio_pg.access.permissions import Permissions
from socketio_pg.access.sessions import Session, Sessions
from socketio_pg.access.tokens import Claims
from socketio_pg.core import green
from socketio_pg.core.errors import DatabaseUnavailableError, SocketIOPGError
from socketio_pg.pubsub.hub import Hub

logger = logging.getLogger("socketio_pg.rechecks")


class Rechecks:
    """Ends subscriptions with ``revoke(sid, channel)`` when they are not allowed any more.

    ``interval``: seconds between two checks of all; 0 for only when :meth:`look` is called. A subscription about which
    nothing can be found out stays, and is asked about again soon: who it is was allowed when there was an answer.
    """

    #: Seconds between two checks of anything.
    least_pause = 0.2
    #: Between two of everything: times that the last one took, and seconds at most.
    pause_factor = 4.0
    most_pause = 5.0
    #: Seconds after which those are asked about again that there was no answer for.
    retry = 5.0
    #: Questions that are asked at once: behind them others have their turn.
    at_once = 100

    def __init__(
        self,
        sessions: Sessions,
        hub: Hub,
        permissions: Permissions,
        revoke: Callable[[str, str], None],
        interval: float,
    ) -> None:
        self._sessions = sessions
        self._hub = hub
        self._permissions = permissions
        self._revoke = revoke
        self._interval = interval
        self._worker = green.Worker()
        self._wanted = green.Event()
        #: What is to be checked: single channels, and when everything is (by the monotonic clock).
        self._channels: set[str] = set()
        self._all_at = float("inf")
        #: Not before then, since the last one of everything was expensive.
        self._not_before = 0.0
        self._complained = False

    def start(self) -> None:
        """Start the green thread."""
        if not self._worker.running:
            self._schedule_all(self._interval or float("inf"))
            self._worker.start(self._run)

    def stop(self) -> None:
        """End the green thread."""
        self._worker.stop()

    def look(self, channel: str | None) -> None:
        """Permissions for ``channel`` have changed; None: for any."""
        self._permissions.forget(channel)
        if channel is None:
            self._schedule_all(0.0)
        else:
            self.again(channel)

    def again(self, channel: str) -> None:
        """What was found out about subscriptions of ``channel`` may have been overtaken: ask again."""
        self._channels.add(channel)
        self._wanted.send()

    def ask(self, claims: Claims | None, channels: Collection[str]) -> dict[str, bool]:
        """Whether somebody with ``claims`` may subscribe to each of ``channels``. Waits.

        Raises :class:`DatabaseUnavailableError` or :class:`DatabaseError` when one cannot be found out.
        """
        allowed = {}
        for channel, answer in zip(channels, self._ask([(claims, channel) for channel in channels]), strict=True):
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
            except Exception:  # a bug, then; the next check is still the best that can be done
                logger.exception("permissions could not be checked again")
                self._schedule_all(self.retry)
            green.sleep(self.least_pause)

    def _schedule_all(self, seconds: float) -> None:
        self._all_at = min(self._all_at, time.monotonic() + seconds)
        self._wanted.send()

    def _check_channels(self) -> None:
        channels, self._channels = self._channels, set()
        if not self._check_shares(self._subscriptions(channels & self._hub.channels()), everything=False):
            self._schedule_all(self.retry)

    def _check_all(self) -> None:
        began = time.monotonic()
        self._all_at = began + (self._interval or float("inf"))
        answered = self._check_shares(self._subscriptions(self._hub.channels()), everything=True)
        if not answered:
            self._schedule_all(self.retry)
            if not self._complained:
                logger.warning("permissions cannot be checked again now: subscriptions stay, and it is tried again")
        self._complained = not answered
        now = time.monotonic()
        self._not_before = now + min(self.most_pause, self.pause_factor * (now - began))

    def _subscriptions(self, channels: Collection[str]) -> list[tuple[Session, str]]:
        return [
            (session, channel)
            for channel in channels
            for subscriber in self._hub.subscribers(channel)
            if isinstance(subscriber, str) and (session := self._sessions.get(subscriber)) is not None
        ]

    def _check_shares(self, subscriptions: Sequence[tuple[Session, str]], *, everything: bool) -> bool:
        """Whether everything could be found out."""
        answered = True
        for start in range(0, len(subscriptions), self.at_once):
            share = subscriptions[start : start + self.at_once]
            answers = self._ask([(session.claims, channel) for session, channel in share])
            failed = 0
            for (session, channel), answer in zip(share, answers, strict=True):
                current = self._sessions.get(session.sid)
                if isinstance(answer, SocketIOPGError):
                    failed += 1
                elif current is not None and current is not session:
                    self.again(channel)  # somebody else by now
                elif not answer and current is session:
                    self._revoke(session.sid, channel)
            answered = answered and not failed
            if failed == len(share):
                break  # the database is away, or busy: to go on would take for ever
            if everything and self._channels:
                self._check_channels()  # what somebody has asked for does not wait for the rest
        return answered

    def _ask(self, questions: Sequence[tuple[Claims | None, str]]) -> list[bool | SocketIOPGError]:
        unanswered = DatabaseUnavailableError("permissions cannot be checked at the moment")
        answers: list[bool | SocketIOPGError] = [unanswered] * len(questions)
        all_done = green.Event()
        left = len(questions)

        def ask(index: int, claims: Claims | None, channel: str) -> None:
            nonlocal left
            try:
                answers[index] = self._permissions.recheck(claims, channel)
            except SocketIOPGError as error:
                answers[index] = error
            finally:
                left -= 1
                if not left:
                    all_done.send()

        # Together: they get into one batch.
        for index, (claims, channel) in enumerate(questions):
            green.run_soon(ask, index, claims, channel)
        if questions:
            all_done.wait()
        return answers
