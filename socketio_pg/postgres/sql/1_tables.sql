-- The log's tables. Idempotent: existing objects are neither changed nor dropped. The schema exists (../trust.py).

DO $$
BEGIN
    IF current_setting('server_version_num')::integer / 10000 < @OLDEST@ THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('PostgreSQL %s is too old: the log needs @OLDEST@ or later', current_setting('server_version'));
    END IF;
END $$;

-- Installations run one after the other: concurrent ones would fail when they change the same object. The first of two that
-- create the schema makes the other wait until it commits; later ones wait for a table. Not an advisory lock, which any
-- role could hold.
DO $$
BEGIN
    IF to_regclass('socketio_pg.schema_version') IS NOT NULL THEN
        LOCK TABLE socketio_pg.schema_version IN SHARE ROW EXCLUSIVE MODE;
    END IF;
END $$;

-- Published messages that have no position yet. publish() inserts rows, the relay removes them.
-- The identity has no cache: ids must increase within a session and after another session's commit.
CREATE TABLE IF NOT EXISTS socketio_pg.outbox (
    id           bigint GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
    channel      text COLLATE "C" NOT NULL,
    payload      jsonb NOT NULL,
    -- Bytes of the payload and of `meta` as text, so that the relay can bound the size of its batches.
    size         integer NOT NULL,
    published_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- For transactions that change watched tables: the place of the message in its transaction, and the transaction. See
    -- watch_begin().
    place        bigint,
    xid          xid8,
    -- NULL for most messages. An object with `from`, which only a server sets, `traceparent`, and `exclude`, the Socket.IO
    -- id of a client that does not get the message.
    meta         jsonb
) WITH (
    -- The table is nearly empty, with constant turnover: vacuum by the number of rows, and never truncate the file,
    -- which would take a lock that blocks all publishers.
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_analyze_threshold = 1000000000,
    vacuum_truncate = false, toast.vacuum_truncate = false
);

-- Not ADD COLUMN IF NOT EXISTS, which takes its lock before it checks.
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_attribute WHERE attrelid = 'socketio_pg.outbox'::regclass AND attname = 'place'
    ) THEN
        ALTER TABLE socketio_pg.outbox ADD COLUMN place bigint, ADD COLUMN xid xid8;
    END IF;
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_attribute WHERE attrelid = 'socketio_pg.outbox'::regclass AND attname = 'meta'
    ) THEN
        ALTER TABLE socketio_pg.outbox ADD COLUMN meta jsonb;
    END IF;
END $$;

-- The ids with which messages were published, and the messages' numbers in the outbox: see claim(). The relay deletes them
-- after five minutes.
CREATE TABLE IF NOT EXISTS socketio_pg.published (
    channel      text COLLATE "C" NOT NULL,
    id           text COLLATE "C" NOT NULL,
    number       bigint NOT NULL,
    published_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (channel, id)
) WITH (
    -- As for the outbox: constant turnover.
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_analyze_threshold = 1000000000,
    vacuum_truncate = false
);

DO $$
BEGIN
    IF to_regclass('socketio_pg.published_published_at') IS NULL THEN
        CREATE INDEX published_published_at ON socketio_pg.published (published_at);
    END IF;
END $$;

-- The messages in the order of their positions, which have no gaps. Kept for LOG_RETENTION.
CREATE TABLE IF NOT EXISTS socketio_pg.log (
    position     bigint PRIMARY KEY,
    channel      text COLLATE "C" NOT NULL,
    payload      jsonb NOT NULL,
    size         integer NOT NULL,
    published_at timestamptz NOT NULL,
    -- The start of the retention period: a transaction may commit long after it has published.
    logged_at    timestamptz NOT NULL DEFAULT now(),
    -- Its id in the outbox, for snapshot(). NULL if a server of version 5 has moved it.
    id           bigint,
    -- As in the outbox. NULL also if a server of an older version has moved it.
    meta         jsonb
) WITH (vacuum_truncate = false, toast.vacuum_truncate = false);

-- Not ADD COLUMN IF NOT EXISTS, which takes its lock before it checks. Without a default the table is not rewritten.
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_attribute WHERE attrelid = 'socketio_pg.log'::regclass AND attname = 'id'
    ) THEN
        ALTER TABLE socketio_pg.log ADD COLUMN id bigint;
    END IF;
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_attribute WHERE attrelid = 'socketio_pg.log'::regclass AND attname = 'meta'
    ) THEN
        ALTER TABLE socketio_pg.log ADD COLUMN meta jsonb;
    END IF;
END $$;

-- Not CREATE INDEX IF NOT EXISTS, which takes its lock before it checks: behind a vacuum, the relay would have to wait.
DO $$
BEGIN
    IF to_regclass('socketio_pg.log_channel_position') IS NULL THEN
        CREATE INDEX log_channel_position ON socketio_pg.log (channel, position);
    END IF;
END $$;

-- One row. The last position is not stored here but taken from the newest row of the log: a counter would leave a dead
-- row per batch, and none of these could be removed while any transaction stays open.
CREATE TABLE IF NOT EXISTS socketio_pg.head (
    only_row          boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    -- Positions are comparable only within one epoch, which changes when the log is recreated or restored.
    epoch             uuid NOT NULL DEFAULT gen_random_uuid(),
    -- Positions up to this one have been deleted by retention.
    trimmed           bigint NOT NULL DEFAULT 0,
    -- The cluster and table in which the epoch was created: others have been restored from a copy, which may be older.
    system_identifier bigint,
    timeline          integer,
    log_oid           oid,
    -- The leader, a server process: its id and name, and the session of its relay. Each election increases the term,
    -- which is the fencing number of every batch. See log/lease.py.
    term              bigint NOT NULL DEFAULT 0,
    leader            uuid,
    leader_name       text,
    session_pid        integer,
    session_started    timestamptz
) WITH (fillfactor = 50);

-- Not ADD COLUMN IF NOT EXISTS, which takes its lock before it checks.
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_attribute WHERE attrelid = 'socketio_pg.head'::regclass AND attname = 'term'
    ) THEN
        ALTER TABLE socketio_pg.head ADD COLUMN term bigint NOT NULL DEFAULT 0, ADD COLUMN leader uuid,
            ADD COLUMN leader_name text, ADD COLUMN session_pid integer, ADD COLUMN session_started timestamptz;
    END IF;
END $$;

-- Evidence of the log's past, which ends the epoch when it contradicts the log: log/epochs.py.
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_attribute WHERE attrelid = 'socketio_pg.head'::regclass AND attname = 'written_by'
    ) THEN
        -- The transaction that wrote the row: a row that was restored from a copy names another one than its xmin. And
        -- when the epoch began, and why; NULL for the first one.
        ALTER TABLE socketio_pg.head ADD COLUMN written_by xid8, ADD COLUMN began_at timestamptz, ADD COLUMN reason text;
    END IF;
END $$;

INSERT INTO socketio_pg.head DEFAULT VALUES ON CONFLICT DO NOTHING;

-- The newest position and the newest id of the outbox that the relay has committed, and the newest position that was
-- deleted by others than the relay. Sequences for the reason below, and because a rollback does not undo them.
CREATE SEQUENCE IF NOT EXISTS socketio_pg.newest_position MINVALUE 0 START 0;
CREATE SEQUENCE IF NOT EXISTS socketio_pg.newest_id MINVALUE 0 START 0;
CREATE SEQUENCE IF NOT EXISTS socketio_pg.removed_position MINVALUE 0 START 0;

-- Two times in milliseconds since 1970, by the database's clock: when the leader last renewed its lease, and until when
-- the relay reads the outbox anyway, so that publishers need not ring. Sequences, because a row that is updated every few
-- seconds would leave dead versions, which vacuum cannot remove while any transaction is open.
CREATE SEQUENCE IF NOT EXISTS socketio_pg.lease MINVALUE 0 START 0;
CREATE SEQUENCE IF NOT EXISTS socketio_pg.busy_until MINVALUE 0 START 0;

-- The nodes; each of them renews its row.
CREATE TABLE IF NOT EXISTS socketio_pg.node (
    id         uuid PRIMARY KEY,
    name       text NOT NULL,
    version    text NOT NULL,
    -- Not read: head names the leader.
    relay      boolean NOT NULL,
    position   bigint,
    clients    integer NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at    timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- The sessions of Socket.IO clients that can recover them (recovery/session_table.py), and the processes that have them.
-- Unlogged: after a crash of PostgreSQL the processes store them again. A process is unknown some time after its last sign
-- of life, and its sessions are with it.
CREATE UNLOGGED TABLE IF NOT EXISTS socketio_pg.session_owner (
    id      uuid PRIMARY KEY,
    seen_at timestamptz NOT NULL DEFAULT now(),
    -- The process has ended, and answers no more.
    ended   boolean NOT NULL DEFAULT false
);
CREATE UNLOGGED TABLE IF NOT EXISTS socketio_pg.session (
    sid           text COLLATE "C" PRIMARY KEY,
    owner         uuid NOT NULL,
    -- JSON: channels with their filters.
    subscriptions text NOT NULL
);

-- Reasons for which the process has refused texts of other nodes during the last minute: core/seal.py.
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = 'socketio_pg.node'::regclass AND attname = 'refused'
    ) THEN
        ALTER TABLE socketio_pg.node ADD COLUMN refused text[] NOT NULL DEFAULT '{}';
    END IF;
END $$;

-- An array of objects with slot, pid, clients, listens and problem; NULL for a node with one worker.
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_attribute WHERE attrelid = 'socketio_pg.node'::regclass AND attname = 'workers'
    ) THEN
        ALTER TABLE socketio_pg.node ADD COLUMN workers jsonb;
    END IF;
END $$;

-- The keys with which the servers seal what they send each other. Only the servers' role may read them: a new key seals
-- once it is 20 s old, so that every server knows it by then, and an old one opens until a minute later.
DO $$
BEGIN
    IF to_regclass('socketio_pg.cluster_key') IS NULL THEN
        CREATE TABLE socketio_pg.cluster_key (
            id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            key        bytea NOT NULL CHECK (octet_length(key) = 32),
            created_at timestamptz NOT NULL DEFAULT clock_timestamp()
        );
        INSERT INTO socketio_pg.cluster_key (key)
        VALUES (sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));
    END IF;
END $$;

-- Failures of watches, added up from time to time, with the newest error: see watch_failed().
CREATE TABLE IF NOT EXISTS socketio_pg.watch_failure (
    counter   text COLLATE "C" NOT NULL,
    failures  bigint NOT NULL,
    -- Without data of rows, as in the warning.
    error     text,
    failed_at timestamptz
);
-- As for the log.
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_attribute WHERE attrelid = 'socketio_pg.watch_failure'::regclass AND attname = 'error'
    ) THEN
        ALTER TABLE socketio_pg.watch_failure ADD COLUMN error text, ADD COLUMN failed_at timestamptz;
    END IF;
END $$;

CREATE TABLE IF NOT EXISTS socketio_pg.schema_version (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version  integer NOT NULL
);
