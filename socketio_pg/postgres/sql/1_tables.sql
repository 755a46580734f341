-- The log tier's tables. Can be run again: nothing that exists is changed or dropped.

CREATE SCHEMA IF NOT EXISTS socketio_pg;

-- What has been published and has no position yet. Written by publish(), emptied by the relay.
-- The identity is never cached: within a session, and after another session's commit, ids must go up.
CREATE TABLE IF NOT EXISTS socketio_pg.outbox (
    id           bigint GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
    channel      text COLLATE "C" NOT NULL,
    payload      jsonb NOT NULL,
    -- Bytes of the payload as text, so that a batch of the relay is bounded by what it really is.
    size         integer NOT NULL,
    published_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (
    -- It turns over all the time and is nearly empty: vacuum by number of rows, and never truncate, which would take
    -- a lock that stops everybody who publishes.
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_analyze_threshold = 1000000000,
    vacuum_truncate = false, toast.vacuum_truncate = false
);

-- The messages in the order of their positions, without gaps. Kept for LOG_RETENTION.
CREATE TABLE IF NOT EXISTS socketio_pg.log (
    position     bigint PRIMARY KEY,
    channel      text COLLATE "C" NOT NULL,
    payload      jsonb NOT NULL,
    size         integer NOT NULL,
    published_at timestamptz NOT NULL,
    -- What the retention counts from: a transaction may commit long after it has published.
    logged_at    timestamptz NOT NULL DEFAULT now()
) WITH (vacuum_truncate = false, toast.vacuum_truncate = false);

-- Not IF NOT EXISTS, which takes the lock before it looks: behind a vacuum the relay would have to wait for it.
DO $$
BEGIN
    IF to_regclass('socketio_pg.log_channel_position') IS NULL THEN
        CREATE INDEX log_channel_position ON socketio_pg.log (channel, position);
    END IF;
END $$;

-- One row. The last position itself is that of the newest row of the log: a counter here would be one dead row a
-- batch, and while some transaction stays open none of them could be removed.
CREATE TABLE IF NOT EXISTS socketio_pg.head (
    only_row          boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    -- Positions can only be compared within one epoch: it changes when the log is recreated or restored.
    epoch             uuid NOT NULL DEFAULT gen_random_uuid(),
    -- Positions up to this one have been trimmed away.
    trimmed           bigint NOT NULL DEFAULT 0,
    -- Where the epoch was given: another cluster or table has been restored from a copy, which may be older.
    system_identifier bigint,
    timeline          integer,
    log_oid           oid
) WITH (fillfactor = 50);

INSERT INTO socketio_pg.head DEFAULT VALUES ON CONFLICT DO NOTHING;

-- The server processes, each of which renews its row.
CREATE TABLE IF NOT EXISTS socketio_pg.node (
    id         uuid PRIMARY KEY,
    name       text NOT NULL,
    version    text NOT NULL,
    relay      boolean NOT NULL,
    position   bigint,
    clients    integer NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at    timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

CREATE TABLE IF NOT EXISTS socketio_pg.schema_version (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version  integer NOT NULL
);
