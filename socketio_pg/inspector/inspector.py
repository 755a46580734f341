"""Makes the parts of the inspector. `parts` makes the inspector, and `websocket` starts and stops it."""

from collections.abc import Callable

from flask import Flask

from socketio_pg.access.access import Access
from socketio_pg.access.explaining import Explainer
from socketio_pg.access.sessions import Sessions
from socketio_pg.control.control import Control
from socketio_pg.core.config import Settings
from socketio_pg.doctor.doctor import examine
from socketio_pg.gateway.delivery import Delivery
from socketio_pg.inspector.access import InspectorAccess
from socketio_pg.inspector.channel import ChannelApi
from socketio_pg.inspector.channels import ChannelsApi
from socketio_pg.inspector.clients import ClientsApi
from socketio_pg.inspector.clock import Clock
from socketio_pg.inspector.database import DatabaseFigures
from socketio_pg.inspector.doctor import DoctorApi
from socketio_pg.inspector.everywhere import Everywhere
from socketio_pg.inspector.figures import Figures, Sources
from socketio_pg.inspector.filters import FilterApi
from socketio_pg.inspector.latency import Sent
from socketio_pg.inspector.namespace import InspectorNamespace
from socketio_pg.inspector.now import Now
from socketio_pg.inspector.passes import Passes
from socketio_pg.inspector.routes import Part, create_inspector_blueprint
from socketio_pg.inspector.session import SessionApi
from socketio_pg.inspector.trying import TryApi
from socketio_pg.inspector.watches import WatchesApi
from socketio_pg.postgres.looking import Looking
from socketio_pg.presence.presence import Presence
from socketio_pg.pubsub.pubsub import PubSub


class Lists:
    """The parts that show and change things, which share a connection to the database while somebody looks."""

    def __init__(
        self, settings: Settings, pubsub: PubSub, access: Access, control: Control, presence: Presence
    ) -> None:
        self._looking = looking = Looking(pubsub.database)
        authenticator = access.authenticator
        explainer = Explainer(settings, authenticator, access.permissions, pubsub.rules, pubsub.database)
        channels = ChannelsApi(control, looking, pubsub.rules)
        self.parts: list[Part] = [
            channels,
            ChannelApi(settings, authenticator.mode, channels, control, looking, pubsub, presence, explainer),
            ClientsApi(control),
            TryApi(settings, pubsub, authenticator, explainer),
            WatchesApi(looking, control, settings.live_tables, settings.debug),
            DoctorApi(lambda: examine(settings, pubsub.database)),
        ]

    def stop(self) -> None:
        """Close the connection."""
        self._looking.stop()


class Inspector:
    """The inspector of one process. ``start_server()`` connects the server; ``max_bytes`` limits a request's body."""

    def __init__(
        self,
        settings: Settings,
        app: Flask,
        access: InspectorAccess,
        passes: Passes,
        everywhere: Everywhere,
        sources: Sources,
        sessions: Sessions,
        delivery: Delivery,
        lists: Lists,
        start_server: Callable[[], None],
        max_bytes: int,
    ) -> None:
        pubsub, sent = sources.pubsub, Sent()
        clock = Clock(pubsub.database)
        self._figures = Figures(sources, clock, sent)
        self._database = DatabaseFigures(pubsub.database, settings.log_retention, settings.log_max_messages)
        now = Now(everywhere, self._figures, self._database, clock)
        self._namespace = InspectorNamespace(
            sources.server, sessions, delivery, pubsub, access, now, sent, start_server
        )
        parts: list[Part] = [
            SessionApi(access, passes, everywhere),
            now,
            FilterApi(),
            *lists.parts,
        ]
        self._lists = lists
        app.register_blueprint(create_inspector_blueprint(access, parts, start_server, max_bytes))

    def start(self) -> None:
        """Start to take samples. Call it after the fork."""
        self._figures.start()

    def stop(self) -> None:
        """Stop all green threads."""
        self._figures.stop()
        self._database.stop()
        self._namespace.stop()
        self._lists.stop()
