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
-- the versions before and after (0: the channel has no row), and these numbers before and after. `member_…`: by how many each
-- member's connections have changed, or NULL; then it also returns the keys of the members that have joined and left.
-- `announce`: a channel of the log for messages about them, and about channels that have got their first connection or lost
-- the last; or NULL.
CREATE OR REPLACE FUNCTION socketio_pg.presence_count(
    channels text[], deltas integer[], member_channels text[], member_keys text[], member_deltas integer[], announce text
) RETURNS TABLE (name text, previous bigint, version bigint, before integer, after integer, joined text[], gone text[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    members jsonb;
    member text;
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
        IF member_keys IS NOT NULL THEN
            -- Once, when the channels are locked: it sees what all earlier callers have committed.
            IF members IS NULL THEN
                SELECT coalesce(jsonb_object_agg(c.channel, jsonb_build_array(c.joined, c.gone)), '{}') INTO members
                FROM (
                    SELECT d.channel, array_agg(d.key ORDER BY d.key) FILTER (WHERE d.delta > 0 AND m.metas = d.delta) AS joined,
                        array_agg(d.key ORDER BY d.key) FILTER (WHERE d.delta < 0 AND m.metas IS NULL) AS gone
                    FROM (
                        SELECT f.channel, f.key, sum(f.delta) AS delta
                        FROM unnest(member_channels, member_keys, member_deltas) AS f (channel, key, delta)
                        GROUP BY f.channel, f.key
                    ) AS d LEFT JOIN (
                        SELECT p.channel, p.key, count(*) AS metas FROM socketio_pg.presence_member AS p
                        WHERE p.channel = ANY (channels) AND p.key = ANY (member_keys) GROUP BY p.channel, p.key
                    ) AS m ON m.channel = d.channel AND m.key = d.key
                    GROUP BY d.channel
                ) AS c;
            END IF;
            joined := ARRAY(SELECT jsonb_array_elements_text(nullif(members -> name -> 0, 'null')));
            gone := ARRAY(SELECT jsonb_array_elements_text(nullif(members -> name -> 1, 'null')));
        END IF;
        IF announce IS NOT NULL THEN
            IF before = 0 AND after > 0 THEN
                PERFORM socketio_pg.publish(announce, jsonb_build_object('event', 'occupied', 'channel', name));
            END IF;
            FOREACH member IN ARRAY coalesce(joined, '{}') LOOP
                PERFORM socketio_pg.publish(
                    announce, jsonb_build_object('event', 'joined', 'channel', name, 'key', member));
            END LOOP;
            FOREACH member IN ARRAY coalesce(gone, '{}') LOOP
                PERFORM socketio_pg.publish(announce, jsonb_build_object('event', 'left', 'channel', name, 'key', member));
            END LOOP;
            IF before > 0 AND after = 0 THEN
                PERFORM socketio_pg.publish(announce, jsonb_build_object('event', 'vacated', 'channel', name));
            END IF;
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
-- if the process is unknown: then nothing is written. Otherwise as presence_count(), with members that have joined and left
-- if `members` is true.
CREATE OR REPLACE FUNCTION socketio_pg.presence_write(
    process uuid, channels text[], refs text[], keys text[], clients text[], states text[], joined bigint[],
    gone_channels text[], gone_refs text[], announce text, members boolean
) RETURNS TABLE (name text, previous bigint, version bigint, before integer, after integer, joined_keys text[], gone_keys text[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    changed text[];
    deltas integer[];
    member_channels text[];
    member_keys text[];
    member_deltas integer[];
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
        RETURNING m.channel, m.key, CASE m.xmax::text WHEN '0' THEN 1 ELSE 0 END AS delta
    ), gone AS (
        DELETE FROM socketio_pg.presence_member AS m
        USING unnest(gone_channels, gone_refs) AS f (channel, ref)
        WHERE m.channel = f.channel AND m.ref = f.ref AND m.process = presence_write.process
        RETURNING m.channel, m.key, -1 AS delta
    ), all_of_them AS (
        SELECT * FROM put UNION ALL SELECT * FROM gone
    ), summed AS (
        SELECT f.channel, sum(f.delta)::integer AS delta FROM all_of_them AS f GROUP BY f.channel
    )
    SELECT s.changed, s.deltas, f.channels, f.keys, f.deltas
    INTO changed, deltas, member_channels, member_keys, member_deltas
    FROM (SELECT array_agg(s.channel) AS changed, array_agg(s.delta) AS deltas FROM summed AS s) AS s, (
        SELECT array_agg(f.channel) AS channels, array_agg(f.key) AS keys, array_agg(f.delta) AS deltas
        FROM all_of_them AS f WHERE members
    ) AS f;
    IF changed IS NOT NULL THEN
        RETURN QUERY SELECT * FROM socketio_pg.presence_count(
            changed, deltas, member_channels, member_keys, member_deltas, announce);
    END IF;
END $$;

-- Removes the processes that have expired, and their members. Returns the processes, and the same as presence_count().
CREATE OR REPLACE FUNCTION socketio_pg.presence_sweep(announce text, members boolean)
RETURNS TABLE (
    processes uuid[], name text, previous bigint, version bigint, before integer, after integer, joined text[], gone text[]
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    changed text[];
    deltas integer[];
    member_channels text[];
    member_keys text[];
    member_deltas integer[];
BEGIN
    WITH dead AS (
        DELETE FROM socketio_pg.presence_process AS p WHERE p.expires_at < now() RETURNING p.id
    )
    SELECT array_agg(d.id) INTO processes FROM dead AS d;
    IF processes IS NULL THEN
        RETURN;
    END IF;
    WITH gone AS (
        DELETE FROM socketio_pg.presence_member AS m WHERE m.process = ANY (processes) RETURNING m.channel, m.key
    ), summed AS (
        SELECT g.channel, -count(*)::integer AS delta FROM gone AS g GROUP BY g.channel
    )
    SELECT s.changed, s.deltas, g.channels, g.keys, g.deltas
    INTO changed, deltas, member_channels, member_keys, member_deltas
    FROM (SELECT array_agg(s.channel) AS changed, array_agg(s.delta) AS deltas FROM summed AS s) AS s, (
        SELECT array_agg(g.channel) AS channels, array_agg(g.key) AS keys, array_agg(-1) AS deltas FROM gone AS g WHERE members
    ) AS g;
    IF changed IS NULL THEN
        RETURN NEXT;
        RETURN;
    END IF;
    FOR name, previous, version, before, after, joined, gone IN
        SELECT * FROM socketio_pg.presence_count(
            changed, deltas, member_channels, member_keys, member_deltas, announce)
    LOOP
        RETURN NEXT;
    END LOOP;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.presence_count(text[], integer[], text[], text[], integer[], text),
    socketio_pg.presence_beat(uuid, text, double precision),
    socketio_pg.presence_write(uuid, text[], text[], text[], text[], text[], bigint[], text[], text[], text, boolean),
    socketio_pg.presence_sweep(text, boolean) FROM PUBLIC;
