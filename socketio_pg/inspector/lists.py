"""Makes the parts of the inspector that show and change things: Channels, Clients, Try, Watches, Doctor."""

from socketio_pg.access.access import Access
from socketio_pg.access.explaining import Explainer
from socketio_pg.control.control import Control
from socketio_pg.core.config import Settings
from socketio_pg.doctor.doctor import examine
from socketio_pg.inspector.channel import ChannelApi
from socketio_pg.inspector.channels import ChannelsApi
from socketio_pg.inspector.clients import ClientsApi
from socketio_pg.inspector.doctor import DoctorApi
from socketio_pg.inspector.routes import Part
from socketio_pg.inspector.trying import TryApi
from socketio_pg.inspector.watches import WatchesApi
from socketio_pg.postgres.looking import Looking
from socketio_pg.presence.presence import Presence
from socketio_pg.pubsub.pubsub import PubSub


class Lists:
    """The parts, which share a connection to the database while somebody looks."""

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
            WatchesApi(looking, control, settings.live_tables),
            DoctorApi(lambda: examine(settings, pubsub.database)),
        ]

    def stop(self) -> None:
        """Close the connection."""
        self._looking.stop()
