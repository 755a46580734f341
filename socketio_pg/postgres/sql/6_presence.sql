-- The members of channels (socketio_pg/presence/), one row for each connection of each member. Unlogged: after a crash of
-- PostgreSQL the server processes write them again.

-- The processes that have members. Each renews its row every few seconds; after `expires_at` its members have left.
CREATE UNLOGGED TABLE IF NOT EXISTS socketio_pg.presence_process (
    id         uuid PRIMARY KEY,
    node       text NOT NULL,
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 50);

CREATE UNLOGGED TABLE IF NOT EXISTS socketio_pg.presence_member (
    channel   text COLLATE "C" NOT NULL,
    ref       text COLLATE "C" NOT NULL,
    key       text COLLATE "C" NOT NULL,
    process   uuid NOT NULL,
    client    text NOT NULL,
    -- JSON that the client has sent. Not jsonb, which would refuse the whole batch for a value that it cannot have.
    state     text NOT NULL,
    joined_at timestamptz NOT NULL,
    PRIMARY KEY (channel, ref)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 5000, vacuum_truncate = false);

-- The channels that have members. The version increases with each change, also after the row was deleted in between.
CREATE UNLOGGED TABLE IF NOT EXISTS socketio_pg.presence_channel (
    channel text COLLATE "C" PRIMARY KEY,
    version bigint NOT NULL,
    metas   integer NOT NULL
) WITH (
    fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 5000, vacuum_truncate = false
);

DO $$
BEGIN
    IF to_regclass('socketio_pg.presence_member_process') IS NULL THEN
        CREATE INDEX presence_member_process ON socketio_pg.presence_member (process);
    END IF;
END $$;

-- Who is in which channel.
CREATE OR REPLACE VIEW socketio_pg.presence AS
    SELECT m.channel, m.key, starts_with(m.key, 'anonymous:') AS anonymous, m.ref, m.client, m.state::jsonb AS state,
        p.node, m.joined_at
    FROM socketio_pg.presence_member AS m JOIN socketio_pg.presence_process AS p ON p.id = m.process
    WHERE p.expires_at > now();

-- Changes channels' numbers of connections, in the order of their names, so that no two callers wait for each other. Returns
-- the versions before and after (0: the channel has no row), and these numbers before and after. `announce`: a channel of the
-- log for messages about channels that have got their first connection, or lost the last; or NULL.
CREATE OR REPLACE FUNCTION socketio_pg.presence_count(channels text[], deltas integer[], announce text)
RETURNS TABLE (name text, previous bigint, version bigint, before integer, after integer)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    FOR name, previous, version, before, after IN
        WITH changed AS (
            INSERT INTO socketio_pg.presence_channel AS c (channel, version, metas)
            SELECT d.channel, floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint, d.delta
            FROM unnest(channels, deltas) AS d (channel, delta) ORDER BY d.channel
            ON CONFLICT (channel) DO UPDATE SET version = c.version + 1, metas = c.metas + excluded.metas
            RETURNING c.channel, c.version, c.metas, c.xmax::text = '0' AS is_new
        )
        SELECT c.channel, CASE WHEN c.is_new THEN 0 ELSE c.version - 1 END,
            CASE WHEN c.metas > 0 THEN c.version ELSE 0 END, greatest(c.metas - d.delta, 0), greatest(c.metas, 0)
        FROM changed AS c JOIN unnest(channels, deltas) AS d (channel, delta) ON d.channel = c.channel
    LOOP
        IF announce IS NOT NULL AND (before = 0) <> (after = 0) THEN
            PERFORM socketio_pg.publish(announce, jsonb_build_object(
                'channel', name, 'event', CASE after WHEN 0 THEN 'vacated' ELSE 'occupied' END));
        END IF;
        RETURN NEXT;
    END LOOP;
    DELETE FROM socketio_pg.presence_channel AS c WHERE c.channel = ANY (channels) AND c.metas <= 0;
END $$;

-- Renews a process for some seconds. Returns whether it was unknown, whether others have expired, and the known ones.
CREATE OR REPLACE FUNCTION socketio_pg.presence_beat(
    process uuid, node text, seconds double precision, OUT unknown boolean, OUT expired boolean, OUT processes uuid[]
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO socketio_pg.presence_process AS p (id, node, expires_at)
    VALUES (process, node, now() + make_interval(secs => seconds))
    ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at RETURNING p.xmax::text = '0' INTO unknown;
    SELECT coalesce(bool_or(p.expires_at < now()), false), array_agg(p.id) INTO expired, processes
    FROM socketio_pg.presence_process AS p;
END $$;

-- Writes the changes of a process: connections that it has, and refs of those that it has no more. Returns NULL as the name
-- if the process is unknown: then nothing is written. Otherwise as presence_count().
CREATE OR REPLACE FUNCTION socketio_pg.presence_write(
    process uuid, channels text[], refs text[], keys text[], clients text[], states text[], joined bigint[],
    gone_channels text[], gone_refs text[], announce text
) RETURNS TABLE (name text, previous bigint, version bigint, before integer, after integer)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    changed text[];
    deltas integer[];
BEGIN
    -- Locks it: it cannot be found expired in the meantime.
    PERFORM FROM socketio_pg.presence_process AS p WHERE p.id = process FOR UPDATE;
    IF NOT FOUND THEN
        RETURN NEXT;
        RETURN;
    END IF;
    WITH put AS (
        INSERT INTO socketio_pg.presence_member AS m (channel, ref, key, process, client, state, joined_at)
        SELECT f.channel, f.ref, f.key, presence_write.process, f.client, f.state,
            to_timestamp(f.joined / 1000.0)
        FROM unnest(channels, refs, keys, clients, states, joined) AS f (channel, ref, key, client, state, joined)
        ORDER BY f.channel, f.ref
        ON CONFLICT (channel, ref) DO UPDATE
            SET process = excluded.process, client = excluded.client, state = excluded.state
        RETURNING m.channel, CASE m.xmax::text WHEN '0' THEN 1 ELSE 0 END AS delta
    ), gone AS (
        DELETE FROM socketio_pg.presence_member AS m
        USING unnest(gone_channels, gone_refs) AS f (channel, ref)
        WHERE m.channel = f.channel AND m.ref = f.ref AND m.process = presence_write.process
        RETURNING m.channel, -1 AS delta
    ), summed AS (
        SELECT f.channel, sum(f.delta)::integer AS delta
        FROM (SELECT * FROM put UNION ALL SELECT * FROM gone) AS f GROUP BY f.channel
    )
    SELECT array_agg(s.channel), array_agg(s.delta) INTO changed, deltas FROM summed AS s;
    IF changed IS NOT NULL THEN
        RETURN QUERY SELECT * FROM socketio_pg.presence_count(changed, deltas, announce);
    END IF;
END $$;

-- Removes the processes that have expired, and their members. Returns the processes, and the same as presence_count().
CREATE OR REPLACE FUNCTION socketio_pg.presence_sweep(announce text)
RETURNS TABLE (processes uuid[], name text, previous bigint, version bigint, before integer, after integer)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    changed text[];
    deltas integer[];
BEGIN
    WITH dead AS (
        DELETE FROM socketio_pg.presence_process AS p WHERE p.expires_at < now() RETURNING p.id
    )
    SELECT array_agg(d.id) INTO processes FROM dead AS d;
    IF processes IS NULL THEN
        RETURN;
    END IF;
    WITH gone AS (
        DELETE FROM socketio_pg.presence_member AS m WHERE m.process = ANY (processes) RETURNING m.channel
    ), summed AS (
        SELECT g.channel, -count(*)::integer AS delta FROM gone AS g GROUP BY g.channel
    )
    SELECT array_agg(s.channel), array_agg(s.delta) INTO changed, deltas FROM summed AS s;
    IF changed IS NULL THEN
        RETURN NEXT;
        RETURN;
    END IF;
    FOR name, previous, version, before, after IN
        SELECT * FROM socketio_pg.presence_count(changed, deltas, announce)
    LOOP
        RETURN NEXT;
    END LOOP;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.presence_count(text[], integer[], text),
    socketio_pg.presence_beat(uuid, text, double precision),
    socketio_pg.presence_write(uuid, text[], text[], text[], text[], text[], bigint[], text[], text[], text),
    socketio_pg.presence_sweep(text) FROM PUBLIC;
