"""The health of one process: the problem of each of its parts."""

from collections.abc import Callable

from socketio_pg.access.access import Access
from socketio_pg.core import config
from socketio_pg.core.problems import Problem
from socketio_pg.gateway.admission import Admission
from socketio_pg.log.backlog import Backlog
from socketio_pg.log.installer import Installer
from socketio_pg.log.relay import Relay
from socketio_pg.pubsub.pubsub import PubSub


class ProcessHealth:
    """Judges the parts of one process. ``leads()`` returns whether it has the parts of which a node has one."""

    def __init__(
        self,
        settings: config.Settings,
        pubsub: PubSub,
        relay: Relay,
        installer: Installer,
        backlog: Backlog,
        access: Access,
        admission: Admission,
        leads: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._pubsub = pubsub
        self._relay = relay
        self._installer = installer
        self._backlog = backlog
        self._access = access
        self._admission = admission
        self._leads = leads

    def parts(self) -> dict[str, Problem | None]:
        """Return the problem of each part, or None for a healthy part."""
        installed = self._pubsub.log.installed
        draining = self._admission.draining
        listening = self._listener_problem()
        missing = self._settings.auto_init and not installed
        return {
            "process": Problem("shutting down") if draining else None,
            "listener": listening,
            # The listener finds the log. NOTIFY works without it.
            "log": self._log_problem() or (self._installer.problem if missing and listening is None else None),
            "relay": (self._backlog.problem or self._relay.problem)
            if installed and self._leads() and not draining
            else None,
            "publisher": None if draining else self._pubsub.publish_problem,
            # NOTIFY needs no key.
            "keys": self._pubsub.keys.problem if installed or self._settings.message_queue is not None else None,
            "permissions": self._access.problem,
        }

    def reaches_database(self) -> bool:
        """Return whether this node is connected to the database."""
        if self._pubsub.problem is None:
            return True
        # With LISTEN=leader the queue between the nodes may be the problem. Each node watches the outbox for itself.
        return self._settings.listen == "leader" and self._backlog.reading is not None

    def _listener_problem(self) -> Problem | None:
        # The listener proves each connection with a NOTIFY on a channel with a secret name.
        listening, relaying = self._pubsub.problem, self._relay.problem
        if listening is None or self._settings.listen != "leader" or relaying is None:
            return listening
        between = "; this node cannot listen for them: "
        return Problem(f"{listening}{between}{relaying}", f"{listening.public}{between}{relaying.public}")

    def _log_problem(self) -> Problem | None:
        # The roles' names are in the log. Without a need for the log, a role with CREATE could make all nodes unready.
        settings = self._settings
        needed = settings.auto_init or settings.names_durable_channels or settings.authorization == "rls"
        if self._pubsub.database.schema_problem is None or not needed:
            return None
        return Problem(
            "the schema socketio_pg is not trusted: a role without trust owns it or a part of it, or may add to it"
        )
