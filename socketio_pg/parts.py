"""Makes the parts of a server, in the order of their dependencies. `websocket` runs them."""

import functools
from collections.abc import Sequence

from flask import Flask

from socketio_pg import signals
from socketio_pg.access.access import Access
from socketio_pg.access.authentication import Authenticate
from socketio_pg.access.questions import Action
from socketio_pg.access.tickets import Tickets
from socketio_pg.cluster.select import Cluster
from socketio_pg.control.control import Control
from socketio_pg.control.local import LocalControl
from socketio_pg.control.local_channels import LocalChannels
from socketio_pg.control.local_clients import LocalClients
from socketio_pg.core import config, green
from socketio_pg.core.problems import Problem
from socketio_pg.core.rules import Rules
from socketio_pg.core.seal import Seal
from socketio_pg.core.sealing import Sealing
from socketio_pg.engine.router import Router
from socketio_pg.ephemeral.ephemeral import Ephemeral
from socketio_pg.ephemeral.senders import EphemeralSenders
from socketio_pg.ephemeral.sending import EphemeralSending
from socketio_pg.gateway.admission import Admission
from socketio_pg.gateway.delivery import Delivery
from socketio_pg.gateway.gauges import Gauges
from socketio_pg.gateway.handlers import Handlers
from socketio_pg.gateway.health import Health
from socketio_pg.gateway.idle import Idle
from socketio_pg.gateway.lifecycle import ClientLifecycle
from socketio_pg.gateway.limits import ClientLimits
from socketio_pg.gateway.live_rights import LiveRights
from socketio_pg.gateway.live_tables import LiveTables
from socketio_pg.gateway.node_health import NodeHealth
from socketio_pg.gateway.node_metrics import NodeMetrics
from socketio_pg.gateway.presence_rooms import PresenceRooms
from socketio_pg.gateway.process_health import ProcessHealth
from socketio_pg.gateway.restoring import Restoring
from socketio_pg.inspector.access import InspectorAccess
from socketio_pg.inspector.everywhere import Everywhere
from socketio_pg.inspector.figures import Sources
from socketio_pg.inspector.inspector import Inspector, Lists
from socketio_pg.inspector.namespace import NAMESPACE
from socketio_pg.inspector.passes import Passes
from socketio_pg.inspector.routes import create_off_blueprint
from socketio_pg.log.backlog import Backlog
from socketio_pg.log.installer import Installer
from socketio_pg.log.relay import Relay
from socketio_pg.presence.presence import Presence
from socketio_pg.protocol.extension import SocketIO
from socketio_pg.pubsub.pubsub import PubSub
from socketio_pg.recovery.keeping import Keeping
from socketio_pg.streams.streams import Streams
from socketio_pg.web.api import Api, create_api_blueprint
from socketio_pg.web.control import ControlApi
from socketio_pg.web.pages import create_blueprint
from socketio_pg.workers import node
from socketio_pg.workers.ending import Ending
from socketio_pg.workers.local_counts import Counts, LocalCounts
from socketio_pg.workers.workers import Workers


class Parts:
    """The parts of a server. :class:`SocketServer` starts, drains and stops them, and documents the parameters."""

    def __init__(
        self,
        settings: config.Settings,
        app: Flask,
        dsn: str | None,
        enable_test_page: bool,
        test: bool,
        authenticate: Authenticate | None,
        binary: bool,
        counts: Counts | None,
    ) -> None:
        self.settings = settings
        # A payload with its envelope; Engine.IO's default is 1,000,000.
        max_bytes = max(1_000_000, settings.max_payload) + 65_536

        found = node.current()
        #: The workers of this node; None when this is the only one.
        self.workers = workers = None if found is None else Workers(found, self._lead)
        # What the nodes send each other is sealed; PubSub reads the key.
        self.sealing = Sealing(Seal())
        cluster = Cluster(settings, self.sealing, workers)
        self.pubsub = PubSub(
            dsn or settings.database_url or app.config.get("SQLALCHEMY_DATABASE_URI"),
            settings.listen_database_url,
            listener=cluster.create_listener,
            publisher=cluster.create_publisher,
            keys=cluster.create_keys,
            share_history=workers is not None,
            max_payload=settings.max_payload,
            rules=Rules.of_settings(settings),
            cluster_key=settings.cluster_key,
            sealing=self.sealing,
            schema_owner=settings.schema_owner,
        )
        database, hub, log = self.pubsub.database, self.pubsub.hub, self.pubsub.log
        self._node_health = view = None
        if workers is not None:
            self._node_health = view = NodeHealth(workers.node, workers.peers, self.health, lambda: len(hub))
        self.relay = Relay(
            database,
            self.pubsub.rules,
            settings.log_max_messages,
            lambda: (log.position, len(hub) if view is None else view.clients),
            self.sealing.seal,
            cluster.create_forwarder(database),
            self.sealing.refused,
            found,
            lambda: [] if view is None else view.workers,
        )
        self._installer = Installer(database, settings.max_payload, lambda: log.installed, self.relay.look)
        self.backlog = Backlog(database, count=settings.metrics_token is not None)
        self._listen_for_workers = cluster.create_workers_forwarder(database)
        # The relay may have looked for the schema before it was installed.
        self.pubsub.watch_log(self.relay.look)

        #: Messages and questions between all processes of the cluster.
        self.bus = cluster.create_bus(self.pubsub)
        manager = cluster.create_manager(self.pubsub)
        self.limits = ClientLimits(settings)
        self.keeping = Keeping(settings, self.pubsub, log, manager)
        self.presence = Presence(
            database,
            self.bus,
            settings.presence_max,
            settings.presence_grace,
            settings.presence_events,
            settings.presence_member_events,
        )
        self.presence.observe(functools.partial(signals.send, app), signals.has_receivers_of_members)
        rooms = PresenceRooms(self.presence, manager, self.keeping, settings.send_buffer_bytes)
        self.access = Access(
            settings,
            app,
            authenticate,
            self.pubsub,
            actions=lambda sid, channel: self._handlers.presence.actions(sid, channel),
            revoke=self._revoke,
            warn_expiring=lambda session: self._deliverer(session.sid).emit_expiring(session),
            expire=lambda session: self._deliverer(session.sid).expire(session),
        )
        self._delivery = delivery = Delivery(
            manager,
            self.pubsub,
            hub,
            log,
            self.limits,
            self.keeping,
            self.access.channel_rights,
            rooms,
            settings.send_buffer_bytes,
        )
        self._tables = LiveTables(
            settings,
            manager,
            self.pubsub,
            delivery.replays,
            LiveRights(settings, self.access.permissions, self.access.sessions),
            self.limits,
        )
        self._router = None
        if workers is not None:
            self._router = Router(
                workers.node,
                workers.peers,
                sessions=lambda: len(self.socketio.server.eio.sockets) + self._admission.streams,
                draining=lambda: self._admission.draining,
            )
        self._ending = Ending(found)
        counts = counts or (LocalCounts() if workers is None else workers.counts)
        self._admission = Admission(settings, counts)
        self._process_health = ProcessHealth(
            settings,
            self.pubsub,
            self.relay,
            self._installer,
            self.backlog,
            self.access,
            self._admission,
            leads=lambda: self._leads,
        )
        passes = Passes(settings, self.sealing)
        inspector_access = None
        if settings.has_inspector:
            inspector_access = InspectorAccess(settings, self.access.authenticator, self._admission, passes)
        self._health = Health(self._process_health.reaches_database, delivery.emit_health)
        self.idle = Idle(hub, settings.idle_timeout, delivery.disconnect_idle, self._tables.has)
        self.ephemeral = Ephemeral(
            manager,
            hub,
            EphemeralSenders(
                self.access.sessions,
                self.access.permissions,
                self.access.senders,
                settings.permission_cache_seconds,
            ),
            EphemeralSending(manager, hub, self.pubsub.matching, delivery.rooms_of, delivery.charge),
            self.idle.heard,
            self.limits.check_ephemeral,
            lambda sid, error: delivery.cut_off(sid, error, "rate_limited"),
            self.bus,
            self.pubsub.rules,
            settings.ephemeral_max_bytes,
        )
        restoring = Restoring(
            self.keeping,
            self.access.sessions,
            manager,
            hub,
            log,
            delivery,
            lambda sid, request: self._handlers.subscribing.prepare(sid, request, stored=True),
            lambda sid, channel, prepared: self._handlers.presence.complete(sid, channel, prepared),
        )
        self.socketio = SocketIO(
            app,
            async_mode=green.LIBRARY,
            before_request=self._admission.answer,
            after_request=self._admission.answered,
            admits=self._admission.admits,
            client_manager=manager,
            lifecycle=ClientLifecycle(
                self._admission,
                self.access,
                self.limits,
                self.idle,
                self.pubsub,
                hub,
                delivery,
                self._health,
                self.keeping,
                restoring,
                self._tables,
                self.ephemeral,
                rooms,
                self.start,
                {} if inspector_access is None else {NAMESPACE: inspector_access.identify_socket},
            ),
            cors_allowed_origins=self._admission.allows_origin,
            client_address=self._admission.address,
            handle_at_once=self.ephemeral.take_at_once,
            new_session_id=None if self._router is None else self._router.new_session_id,
            binary=binary,
            max_http_buffer_size=max_bytes,
            ping_interval=settings.ping_interval,
            ping_timeout=settings.ping_timeout,
            send_buffer_bytes=settings.send_buffer_bytes,
            max_connections=settings.max_connections,
            counts=counts,
            connect_timeout=settings.connect_timeout,
        )
        server = self.socketio.server
        self._handlers = Handlers(
            server,
            self.pubsub,
            hub,
            log,
            delivery,
            self.access,
            self._admission,
            self.limits,
            self.keeping,
            self._tables,
            self.ephemeral,
            self.presence,
            rooms,
        )
        self._handlers.register(test=test)

        # After `delivery`, which expects to be the first receiver of messages.
        self.streams = Streams(
            server.eio,
            self.pubsub,
            hub,
            log,
            self.access,
            self.limits,
            settings.send_buffer_bytes,
            settings.ping_interval + settings.ping_timeout,
        )
        clients = LocalClients(
            server,
            self.access.sessions,
            self.access.senders,
            hub,
            self._tables,
            self.streams,
            self._admission,
            log,
        )
        #: Lists, disconnects and reaches users on all nodes and workers.
        self.control = Control(
            self.bus,
            self.pubsub,
            LocalControl(
                server,
                self.access.sessions,
                clients,
                hub,
                delivery,
                self._tables,
                self.streams,
                self.keeping,
                self.presence,
            ),
            LocalChannels(hub, self.pubsub.tally, self.access.sessions, clients),
            settings.max_payload,
        )
        self.gauges = Gauges(
            server,
            self.streams.connections,
            self.pubsub,
            hub,
            log,
            self.relay,
            self.backlog,
            self.presence,
            self.health,
            lambda: cluster.workers_listener or self.pubsub.listener,
        )
        self._node_metrics = None
        if workers is not None and settings.metrics_token is not None:
            self._node_metrics = NodeMetrics(workers.node, workers.peers, self.gauges.collect)
        app.register_blueprint(
            create_blueprint(
                self.readiness,
                (self._node_metrics or self.gauges).render,
                enable_test_page=enable_test_page,
                metrics_token=settings.metrics_token,
            )
        )
        if settings.http_api:
            tickets = Tickets(self.sealing)
            api = Api(
                settings,
                self.pubsub,
                self.access,
                self._admission,
                self.presence,
                self.streams,
                tickets,
                self.start,
                max_bytes,
            )
            control_api = None
            if settings.admin_token is not None:
                control_api = ControlApi(settings.admin_token, self.control, self._admission, self.start, max_bytes)
            app.register_blueprint(create_api_blueprint(api, control_api))
        self.inspector = None
        if inspector_access is None:
            app.register_blueprint(create_off_blueprint())
        else:
            self.inspector = Inspector(
                settings,
                app,
                inspector_access,
                passes,
                Everywhere(self.bus),
                Sources(
                    server,
                    self.streams.connections,
                    self.pubsub,
                    self.relay,
                    self.backlog,
                    self._tables,
                    self._admission,
                    self.health,
                    lambda: cluster.workers_listener or self.pubsub.listener,
                    lambda: self._leads,
                ),
                self.access.sessions,
                delivery,
                Lists(settings, self.pubsub, self.access, self.control, self.presence),
                self.start,
                max_bytes,
            )

    def start(self, addresses: Sequence[str] = ()) -> None:
        """Start the parts; idempotent."""
        raise NotImplementedError

    def readiness(self) -> dict[str, Problem | None]:
        """Return the :meth:`health` of all workers together."""
        raise NotImplementedError

    def _lead(self, leading: bool) -> None:
        """Start or stop the parts of which a node has one."""
        raise NotImplementedError

    def health(self) -> dict[str, Problem | None]:
        """Return the problem of each part of this process, or None for a healthy part.

        The server can serve clients when all parts are healthy.
        """
        return self._process_health.parts()

    @property
    def _leads(self) -> bool:
        """Whether this process has the parts of which a node has one."""
        return self.workers is None or self.workers.election.leading

    def _revoke(self, sid: str, channel: str, action: Action) -> None:
        """End a subscription, or another action, of a client that may not go on with it."""
        if action == "subscribe":
            self._deliverer(sid).revoke(sid, channel)
        else:
            self._handlers.presence.revoke(sid, channel, action)

    def _deliverer(self, sid: str) -> Delivery | Streams:
        return self.streams if self.streams.owns(sid) else self._delivery
