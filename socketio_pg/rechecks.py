"""Asks now and then, and when it is told to, whether those who subscribe still may."""

import logging
import time
from collections.abc import Callable, Collection, Sequence

from socketio_pg import green
from socketio_pg.errors import DatabaseUnavailableError, SocketIOPGError
from socketio_pg.hub import Hub
from socketio_pg.permissions import Permissions
from socketio_pg.sessions import Sessions
from socketio_pg.tokens import Claims

logger = logging.getLogger("socketio_pg.rechecks")


class Rechecks:
    """Ends subscriptions with ``revoke(sid, channel)`` when they are not allowed any more.

    ``interval``: seconds between two checks of all; 0 for only when :meth:`look` is called. A subscription about which
    nothing can be found out stays, and is asked about again soon: who it is was allowed when there was an answer.
    """

    #: Seconds between two checks at least, and times that the last one took.
    least_pause = 1.0
    pause_factor = 4.0
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
        self._thread: green.GreenThread | None = None
        self._wanted = green.Event()
        #: What :meth:`look` was called for; None is in it for all channels.
        self._channels: set[str | None] = set()

    def start(self) -> None:
        """Start the green thread."""
        if self._thread is None:
            self._thread = green.spawn(self._run)

    def stop(self) -> None:
        """End the green thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.kill()

    def look(self, channel: str | None) -> None:
        """Permissions for ``channel`` have changed; None: for any."""
        self._permissions.forget()
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
        pause, complained = self._interval, False
        while True:
            channels = self._wait(pause)
            began = time.monotonic()
            try:
                answered = self._check(channels)
            except Exception:  # a bug, then; the next check is still the best that can be done
                logger.exception("permissions could not be checked again")
                answered = False
            pause = self._interval if answered else min(self.retry, self._interval or self.retry)
            if not answered and not complained:
                logger.warning("permissions cannot be checked again now: subscriptions stay, and it is tried again")
            complained = not answered
            green.sleep(max(self.least_pause, self.pause_factor * (time.monotonic() - began)))

    def _wait(self, pause: float) -> set[str | None]:
        """The channels that are to be checked, after ``pause`` seconds all."""
        try:
            self._wanted.wait(pause or None)
        except green.TimedOut:
            return {None}
        finally:
            self._wanted = green.Event()
        channels, self._channels = self._channels, set()
        return channels or {None}

    def _check(self, channels: set[str | None]) -> bool:
        """Whether everything could be found out."""
        answered = True
        subscribed = self._hub.channels()
        subscriptions = [
            (session, channel)
            for channel in (subscribed if None in channels else subscribed & channels)
            for subscriber in self._hub.subscribers(channel)
            if isinstance(subscriber, str) and (session := self._sessions.get(subscriber)) is not None
        ]
        for start in range(0, len(subscriptions), self.at_once):
            share = subscriptions[start : start + self.at_once]
            answers = self._ask([(session.claims, channel) for session, channel in share])
            for (session, channel), answer in zip(share, answers, strict=True):
                if isinstance(answer, SocketIOPGError):
                    answered = False
                elif not answer and self._sessions.get(session.sid) is session:
                    self._revoke(session.sid, channel)
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
