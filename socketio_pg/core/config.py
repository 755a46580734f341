"""The settings: one table with name, type, default and help. :mod:`~socketio_pg.core.loading` reads them."""

import dataclasses
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from socketio_pg.core import green_library, parsers
from socketio_pg.core.addresses import redact
from socketio_pg.core.rules import Rule, parse_rules

#: File descriptors needed besides those of clients: for the database, logs, and rejected requests.
SPARE_DESCRIPTORS = 100


def _hide(_: str) -> str:
    return "***"


def setting(
    default: object,
    parse: Callable[[object], object],
    help: str,
    *,
    shown: str | None = None,
    show: Callable[[str], str | None] = str,
) -> Any:
    """Return a row of the table.

    ``shown`` replaces the default in the docs where the value alone is unclear. ``show`` prepares a value for messages
    and logs, without secrets.
    """
    return dataclasses.field(default=default, metadata={"parse": parse, "help": help, "shown": shown, "show": show})


@dataclass(frozen=True)
class Settings:
    """All settings. The environment and ``local.cfg`` name them SOCKETIO_PG_NAME or NAME: the field in capitals."""

    database_url: str | None = setting(
        None, parsers.database_url,
        "PostgreSQL address, with any libpq parameter. local.cfg may call it SQLALCHEMY_DATABASE_URI", show=redact,
    )  # fmt: skip
    listen_database_url: str | None = setting(
        None, parsers.database_url,
        "a second address, which bypasses a pooler, for the connections that need a session: LISTEN and the relay",
        shown="DATABASE_URL", show=redact,
    )  # fmt: skip
    green: str | None = setting(
        None, parsers.choice(*green_library.LIBRARIES),
        "the green-thread library of the development server, of socketio-pg serve, and of gunicorn with socketio_pg's "
        "configuration and no --worker-class: eventlet, or gevent (docs/deploy.md)",
        shown=green_library.LIBRARIES[0],
    )  # fmt: skip
    debug: bool = setting(
        False, parsers.boolean, "development mode: starts an embedded PostgreSQL if DATABASE_URL is not set"
    )
    host: str = setting("127.0.0.1", parsers.host, "address of the development server and of `socketio-pg serve`")
    port: int = setting(3030, parsers.integer(1, 65535), "port of the development server and of `socketio-pg serve`")
    secret_key: str | None = setting(
        None,
        parsers.plain,
        "Flask's key for signed cookies; without one Flask cannot sign",
        shown="random with DEBUG, otherwise none",
        show=_hide,
    )
    cors_allowed_origins: tuple[str, ...] | None = setting(
        None, parsers.origins, "other origins whose pages may connect, comma-separated, or '*' for all",
        shown="same origin only; with DEBUG also every origin of the own machine",
    )  # fmt: skip
    allowed_hosts: tuple[str, ...] | None = setting(
        None, parsers.hosts,
        "host names at which the server answers, comma-separated; '.example.com' is that name and its subdomains, "
        "'*.example.com' the subdomains only, '*' any name",
        shown="any; with DEBUG: IP addresses, localhost, *.localhost, this machine's name",
    )  # fmt: skip
    auth: str | None = setting(
        None, parsers.choice("off", "optional", "required"),
        "'required': clients need a valid token; 'optional': without one they are anonymous; 'off': tokens are ignored",
        shown="required if a key is set, otherwise off",
    )  # fmt: skip
    jwt_secret: str | None = setting(
        None, parsers.plain, "secret for tokens signed with HMAC; at least 32 bytes for HS256", show=_hide
    )
    jwt_public_key: str | None = setting(
        None, parsers.public_key,
        "public key for tokens signed with RSA, ECDSA or Ed25519: PEM text, or a file path", show=_hide,
    )  # fmt: skip
    jwks_url: str | None = setting(
        None, parsers.jwks_location, "URL or file path of a JWK set, for public keys that rotate"
    )
    jwt_algorithms: tuple[str, ...] = setting(
        (), parsers.names, "accepted signature algorithms, comma-separated",
        shown="HS256, or those that fit the public keys",
    )  # fmt: skip
    jwt_issuer: str | None = setting(None, parsers.plain, "required value of a token's iss claim", shown="not checked")
    jwt_audience: tuple[str, ...] = setting(
        (),
        parsers.names,
        "accepted values of a token's aud claim, comma-separated; one must match",
        shown="not checked",
    )
    jwt_leeway: float = setting(
        10.0, parsers.seconds(0, 300), "seconds by which the clocks of issuer and server may differ"
    )
    jwt_role_claim: str = setting("role", parsers.plain, "claim that names the database role for AUTHORIZATION=rls")
    jwks_cache_seconds: float = setting(
        300.0,
        parsers.seconds(1, 86_400),
        "seconds until the JWK set is fetched again; a revoked key is accepted for that long",
    )
    authorization: str = setting(
        "off", parsers.choice("off", "claims", "rls"),
        "permission check for subscribing and publishing: 'claims': channel patterns in the token; 'rls': "
        "row-level-security policies on socketio_pg.messages; 'off': clients that AUTH admits may use every channel",
    )  # fmt: skip
    publish: str | None = setting(
        None, parsers.choice("off", "authenticated", "all"),
        "which clients may publish: 'off': none; 'authenticated': those with a token; 'all'. AUTHORIZATION applies too",
        shown="all if AUTH=off, otherwise authenticated",
    )  # fmt: skip
    presence: str | None = setting(
        None, parsers.choice("off", "authenticated", "all"),
        "which clients may be members of a channel: 'off': none, and nobody sees any; 'authenticated': those with a "
        "token; 'all'. AUTHORIZATION applies too",
        shown="all if AUTH=off, otherwise authenticated",
    )  # fmt: skip
    presence_max: int = setting(
        500, parsers.integer(1, 100_000),
        "members of a channel that clients are told; of more they get only the number (docs/presence.md)",
    )  # fmt: skip
    presence_grace: float = setting(
        8.0, parsers.seconds(0, 300),
        "seconds for which a member stays after its connection was lost; while the node drains, DRAIN_SECONDS longer",
    )  # fmt: skip
    presence_events: str | None = setting(
        None, parsers.channel,
        "channel of the log for messages about channels that get their first member or lose their last one "
        "(docs/presence.md), such as presence:events",
        shown="none",
    )  # fmt: skip
    presence_member_events: bool = setting(
        False, parsers.boolean, "messages in the channel PRESENCE_EVENTS also about members that join and leave"
    )
    ephemeral: str | None = setting(
        None, parsers.choice("off", "authenticated", "all"),
        "which clients may publish ephemeral messages, as PUBLISH. AUTHORIZATION applies too", shown="PUBLISH",
    )  # fmt: skip
    from_claims: tuple[str, ...] = setting(
        ("sub",), parsers.claims,
        "claims of a client's token that subscribers get with the messages that it publishes, as `from`; "
        "comma-separated, 'off': none",
    )  # fmt: skip
    public_channels: tuple[str, ...] = setting(
        (), parsers.patterns, "channels that every admitted client may subscribe to; patterns as in DURABLE_CHANNELS"
    )
    allowed_roles: tuple[str, ...] = setting(
        (), parsers.roles, "with AUTHORIZATION=rls: roles that a token may name, comma-separated"
    )
    anonymous_role: str | None = setting(
        None, parsers.role, "with AUTHORIZATION=rls: role of clients without a token, and of tokens that name no role",
        shown="none: forbidden",
    )  # fmt: skip
    permission_timeout: float = setting(
        2.0, parsers.seconds(0.1, 60), "with AUTHORIZATION=rls: time limit in seconds for the policies of one decision"
    )
    permission_cache_seconds: float = setting(
        10.0, parsers.seconds(0, 3600), "with AUTHORIZATION=rls: seconds for which a permission is cached"
    )
    permission_recheck_seconds: float = setting(
        60.0, parsers.seconds(0, 86_400),
        "with AUTHORIZATION=rls: seconds between rechecks of all subscriptions; 0: only when socketio_pg.recheck() "
        "is called",
    )  # fmt: skip
    live_tables: tuple[str, ...] = setting(
        (), parsers.tables,
        "watched tables that clients may subscribe to as live tables: public.orders, or public.* for all of a schema; "
        "the code of their owners (policies, types) is trusted (docs/live-tables.md)",
    )  # fmt: skip
    live_table_role: str | None = setting(
        None, parsers.role,
        "role that reads live tables for all clients, unless AUTHORIZATION=rls gives each client its own",
        shown="none: forbidden",
    )  # fmt: skip
    live_table_rows: int = setting(
        10_000, parsers.integer(1, 1_000_000), "maximum number of rows that a live table sends to a client at first"
    )
    live_table_bytes: int = setting(
        10_000_000, parsers.integer(1_000, 1_000_000_000), "maximum size of these rows, in bytes of JSON"
    )
    live_tables_per_client: int = setting(
        20, parsers.integer(1, 10_000), "maximum number of live tables that one client may subscribe to"
    )
    log_level: str = setting("INFO", parsers.log_level, "DEBUG, INFO, WARNING, ERROR or CRITICAL")
    log_format: str = setting(
        "text", parsers.choice("text", "json"), "format of the server's log lines: 'text' (key=value) or 'json'"
    )
    test_page: bool = setting(
        True,
        parsers.boolean,
        "serve the playground: / and /socket-test redirect to /static/test.html; set 0 in production",
    )
    http_api: bool = setting(
        True, parsers.boolean, "publish and replay over HTTP at /api/, with the same permissions as over sockets"
    )
    max_connections: int = setting(
        10_000,
        parsers.integer(1, 1_000_000),
        "maximum number of clients, and of concurrent HTTP connections; further clients get HTTP 503",
    )
    max_connections_per_address: int = setting(
        0,
        parsers.integer(0, 1_000_000),
        "maximum number of clients per IP address; further ones get HTTP 429; 0: no limit",
    )
    max_attempts_per_second_per_address: int = setting(
        0, parsers.integer(0, 1_000_000),
        "connection attempts and /api/ requests per second and IP address (bursts: 5 times as many); 0: no limit",
    )  # fmt: skip
    max_pending_per_address: int = setting(
        1_000, parsers.integer(0, 1_000_000),
        "maximum number of clients per public IP address that have opened a connection or session and are not admitted "
        "yet; further ones get HTTP 429; 0: no limit",
    )  # fmt: skip
    max_failed_attempts_per_second_per_address: int = setting(
        100, parsers.integer(0, 1_000_000),
        "refused tokens and logins per second and public IP address (bursts: 5 times as many); beyond that, no token "
        "of the address is accepted for a while; 0: no limit",
    )  # fmt: skip
    trusted_proxies: int = setting(
        0, parsers.integer(0, 100),
        "number of proxies in front of the server that append to X-Forwarded-For; selects the client's address in it",
    )  # fmt: skip
    max_subscriptions: int = setting(
        1_000,
        parsers.integer(0, 10_000_000),
        "maximum number of channels that one client may subscribe to; 0: no limit",
    )
    max_patterns_per_client: int = setting(
        20,
        parsers.integer(0, 1000),
        "maximum number of patterns that one client may subscribe to (docs/patterns.md); 0: none",
    )
    pattern_min_prefix: int = setting(
        1,
        parsers.integer(0, 63),
        "characters that a pattern needs before its first '*', unless its client may subscribe to everything",
    )
    max_channels: int = setting(
        50_000, parsers.integer(0, 10_000_000),
        "maximum number of channels that all clients of a node may subscribe to together; LISTEN takes a database "
        "connection for each 10,000; 0: no limit",
    )  # fmt: skip
    max_events_per_second: int = setting(
        200, parsers.integer(0, 1_000_000), "events per second and client (bursts: 5 times as many); 0: no limit"
    )
    max_event_bytes_per_second: int = setting(
        1_000_000, parsers.integer(0, 10**12),
        "bytes of events per second and client (bursts: 5 times as many); 0: no limit",
    )  # fmt: skip
    max_ephemeral_per_second_per_client: int = setting(
        100, parsers.integer(0, 1_000_000),
        "ephemeral messages per second and client (bursts: 5 times as many), which do not count as events; 0: no limit",
    )  # fmt: skip
    ephemeral_max_bytes: int = setting(
        1_000, parsers.integer(1, 16_000), "maximum size of the payload of an ephemeral message, in bytes"
    )
    max_filter_milliseconds_per_second: int = setting(
        50, parsers.integer(0, 1_000),
        "milliseconds of computing per second that the filters of one client may cost (bursts: twice as many); a "
        "client over it loses these subscriptions; 0: no limit",
    )  # fmt: skip
    idle_timeout: float = setting(
        0.0, parsers.seconds(0, 86_400 * 7),
        "seconds after which a client that has no subscription and sends nothing is disconnected; 0: never",
    )  # fmt: skip
    auto_init: bool = setting(
        False,
        parsers.boolean,
        "install or upgrade the log's schema at startup as `socketio-pg init` does, and install it when it is missing",
    )
    schema_owner: str | None = setting(
        None, parsers.plain,
        "one more role that is trusted as the owner of the schema socketio_pg; the server's role, superusers and the "
        "database's owner are trusted already",
    )  # fmt: skip
    durable_channels: tuple[str, ...] = setting(
        ("*",),
        parsers.patterns,
        "channels whose messages go through the log where one is installed, unless their publisher says otherwise; "
        "comma-separated, * matches any text, empty: none",
    )
    html_channels: tuple[str, ...] = setting(
        (), parsers.patterns,
        "channels whose messages may be HTML for pages (docs/sse.md), patterns as in DURABLE_CHANNELS; clients cannot "
        "publish to them",
    )  # fmt: skip
    max_payload: int = setting(
        1_000_000,
        parsers.integer(1_000, 100_000_000),
        "maximum size of a payload in the log, in bytes; `socketio-pg init` applies it in the database",
    )
    log_retention: float = setting(
        86_400.0,
        parsers.seconds(1, 315_360_000),
        "seconds for which messages stay in the log for replay; the default is a day",
    )
    log_max_messages: int | None = setting(
        None, parsers.integer(1, 10**15), "maximum number of messages that stay in the log", shown="no limit"
    )
    channel_rules: Mapping[str, Rule] | None = setting(
        None, parse_rules,
        'rules for channels as a JSON object, pattern to columns, like {"chat:*": {"max_messages": 100}}; those of the '
        "table socketio_pg.rule count first (docs/rules.md)",
        shown="none",
    )  # fmt: skip
    recovery_seconds: float = setting(
        120.0,
        parsers.seconds(0, 86_400),
        "seconds for which a client that has asked for it can recover its session after its connection was lost "
        "(docs/recovery.md); 0: not at all",
    )
    message_queue: str | None = setting(
        None, parsers.message_queue,
        "carries Flask-SocketIO's own emits, disconnects and callbacks between nodes: 'postgres' (the same database), "
        "or the address of a Redis, Valkey or Kafka server",
        shown="none: they reach only clients of the same node", show=redact,
    )  # fmt: skip
    message_queue_channel: str = setting(
        "socketio_pg_queue", parsers.plain,
        "Redis or Valkey channel, or Kafka topic, of MESSAGE_QUEUE; use a different one for each database that shares "
        "the server",
    )  # fmt: skip
    cluster_key: tuple[str, ...] = setting(
        (), parsers.cluster_key,
        "secret with which nodes seal what they send each other: the same random text of at least 32 characters on "
        "all nodes; of a comma-separated list, the first one seals and all open",
        shown="a key in the schema, made by init", show=_hide,
    )  # fmt: skip
    listen: str = setting(
        "each", parsers.choice("each", "leader"),
        "which nodes listen to PostgreSQL: 'each' node, or only the 'leader', which relays the log and forwards "
        "notifications over MESSAGE_QUEUE (Redis or Valkey)",
    )  # fmt: skip
    send_buffer_bytes: int = setting(
        1_000_000,
        parsers.integer(10_000, 1_000_000_000),
        "size of one client's send buffer, in bytes; once it is exceeded, the next message disconnects the client",
    )
    connect_timeout: float = setting(
        10.0,
        parsers.seconds(1, 300),
        "seconds within which a connection must complete the Socket.IO handshake and be admitted",
    )
    ping_interval: float = setting(25.0, parsers.seconds(1, 3600), "seconds between pings to a client")
    ping_timeout: float = setting(20.0, parsers.seconds(1, 3600), "seconds within which a client must answer a ping")
    drain_seconds: float = setting(
        3.0, parsers.seconds(0, 8), "at SIGTERM, client disconnects are spread over this many seconds"
    )
    metrics_token: str | None = setting(
        None, parsers.plain, "Bearer token that gives access to /metrics", shown="none: /metrics is off", show=_hide
    )
    admin_token: str | None = setting(
        None, parsers.secret,
        "Bearer token for the requests of /api/ that list, disconnect and reach users (docs/identity.md); at least 16 "
        "characters", shown="none: they are off", show=_hide,
    )  # fmt: skip
    inspector_token: str | None = setting(
        None, parsers.secret,
        "token that signs in to the inspector, /inspector/, to read (docs/inspector.md); at least 16 characters",
        shown="none: without another INSPECTOR_ setting the inspector is off; with DEBUG it is on for the own machine",
        show=_hide,
    )  # fmt: skip
    inspector_admin_token: str | None = setting(
        None, parsers.secret,
        "token that signs in to the inspector, to read and to act: publish, disconnect clients, switch watches; at "
        "least 16 characters", shown="none", show=_hide,
    )  # fmt: skip
    inspector_roles: tuple[str, ...] = setting(
        (), parsers.claim_values,
        "clients' tokens (JWT) that sign in to the inspector, to read: values of JWT_ROLE_CLAIM, or CLAIM=VALUE, "
        "comma-separated; one must match. The claim may be a list", shown="none",
    )  # fmt: skip
    inspector_admin_roles: tuple[str, ...] = setting(
        (), parsers.claim_values, "as INSPECTOR_ROLES, to read and to act", shown="none"
    )
    embedded_data_dir: str = setting(
        ".postgres", parsers.plain, "data directory of the embedded PostgreSQL (development only)"
    )

    @property
    def names_durable_channels(self) -> bool:
        """Whether DURABLE_CHANNELS names channels: then the operator expects a log."""
        return self.durable_channels not in ((), ("*",))

    @property
    def has_inspector(self) -> bool:
        """Whether the inspector is on: in development, or when a setting says who may sign in."""
        tokens, roles = (
            (self.inspector_token, self.inspector_admin_token),
            (*self.inspector_roles, *self.inspector_admin_roles),
        )
        return self.debug or any(tokens) or bool(roles)

    def authentication(self) -> str:
        """Return AUTH or its default: ``off``, ``optional`` or ``required``."""
        if self.auth is not None:
            return self.auth
        return "required" if self.jwt_secret or self.jwt_public_key or self.jwks_url else "off"

    def flask_secret_key(self) -> str | None:
        """Return SECRET_KEY, with DEBUG a random one, otherwise None: Flask then raises an error when it has to sign.

        This package signs nothing, so a server without sessions needs no key. In production a random key would silently
        differ after each start and between nodes.
        """
        return self.secret_key or (secrets.token_hex(32) if self.debug else None)

    def __repr__(self) -> str:
        """Return the settings without secrets, because this text may end up in a log."""
        shown = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            hidden = isinstance(value, str) or (value and field.metadata["show"] is _hide)
            shown.append(f"{field.name}={(field.metadata['show'](value) if hidden else value)!r}")
        return f"Settings({', '.join(shown)})"


#: The names of all settings, without the prefix.
NAMES = frozenset(field.name.upper() for field in dataclasses.fields(Settings))

NO_DATABASE_REMEDY = (
    "set DATABASE_URL in the environment, or SQLALCHEMY_DATABASE_URI in local.cfg (or DEBUG=1 for an embedded one)"
)
NO_DATABASE = f"No database is configured: {NO_DATABASE_REMEDY}."


def describe() -> list[tuple[str, str, str]]:
    """Return (name, default, help) of each setting, for the docs and the command's help."""
    rows = []
    for field in dataclasses.fields(Settings):
        default = field.metadata["shown"] or ("" if field.default is None else _shown(field.default))
        rows.append((field.name.upper(), default, field.metadata["help"]))
    return rows


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, tuple):
        return ",".join(value)
    return (
        f"{value:g}"
        if isinstance(value, float) and value < 1000
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )
