-- Row changes as messages: what the triggers of watch() run. All that a watch is stands in the argument of its triggers,
-- one JSON text: dropping the table drops it, and a dump carries it.
--
-- The trigger function runs with its owner's rights, so that who writes the table needs none of ours. The others here
-- are its parts: nobody else may call them, and they find its search_path.

-- The channel of a row: '{literal,column,literal,…}' filled with the row's values. NULL when one of those is NULL or
-- missing, or what comes out is no channel's name.
CREATE OR REPLACE FUNCTION socketio_pg.watch_channel(parts text[], image jsonb) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    channel text := parts[1];
BEGIN
    FOR n IN 2 .. cardinality(parts) BY 2 LOOP
        channel := channel || (image ->> parts[n]) || parts[n + 1];
    END LOOP;
    RETURN CASE WHEN image IS NOT NULL AND socketio_pg.channel_problem(channel) IS NULL THEN channel END;
END $$;

-- The columns of the watched table as they are now, in their order: those that are shown in new and old (`columns` without
-- `exclude`), those of the primary key, both together, and those that may be named in a channel. `whole`: all are shown.
CREATE OR REPLACE FUNCTION socketio_pg.watch_columns(
    spec jsonb, relation oid, OUT shown text[], OUT key text[], OUT tracked text[], OUT usable text[], OUT whole boolean
) LANGUAGE plpgsql STABLE AS $$
DECLARE
    wanted text[];
    hidden text[] := '{}';
    numbers smallint[];
    in_key smallint[];
BEGIN
    IF spec ->> 'columns' IS NOT NULL THEN
        wanted := ARRAY(SELECT jsonb_array_elements_text(spec -> 'columns'));
    END IF;
    IF spec ->> 'exclude' IS NOT NULL THEN
        hidden := ARRAY(SELECT jsonb_array_elements_text(spec -> 'exclude'));
        -- A column that was renamed stays hidden, by its number. After a dump and restore numbers say nothing any more:
        -- there a name that is gone may have been renamed, and nothing is sent.
        IF relation = (spec ->> 'relation')::oid THEN
            numbers := ARRAY(SELECT jsonb_array_elements_text(spec -> 'numbers'));
        ELSIF EXISTS (
            SELECT FROM unnest(hidden) AS h WHERE h NOT IN (
                SELECT a.attname FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attnum > 0)
        ) THEN
            RAISE EXCEPTION USING ERRCODE = 'SG005',
                MESSAGE = 'a column to exclude is not there any more, perhaps by another name: call watch() again';
        END IF;
    END IF;
    -- Without what the index only includes. It counts from 0.
    SELECT (i.indkey::smallint[])[0 : i.indnkeyatts - 1] INTO in_key
    FROM pg_index AS i WHERE i.indrelid = relation AND i.indisprimary;
    SELECT array_agg(c.name) FILTER (WHERE c.chosen), array_agg(c.name) FILTER (WHERE c.in_key),
        array_agg(c.name) FILTER (WHERE c.chosen OR c.in_key), array_agg(c.name) FILTER (WHERE c.open), bool_and(c.chosen)
    INTO shown, key, tracked, usable, whole
    FROM (
        SELECT o.name, o.open, o.open AND (wanted IS NULL OR o.name = ANY (wanted)) AS chosen,
            o.open AND o.attnum = ANY (in_key) AS in_key
        FROM (
            -- Virtual generated columns have no value in a trigger.
            SELECT a.attname::text AS name, a.attnum, a.attgenerated <> 'v' AND a.attname <> ALL (hidden)
                AND (numbers IS NULL OR a.attnum <> ALL (numbers)) AS open
            FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
            ORDER BY a.attnum
        ) AS o
    ) AS c;
    -- A transaction with a snapshot from before the table was made sees none.
    whole := coalesce(whole, wanted IS NULL AND hidden = '{}');
    shown := coalesce(shown, '{}');
    tracked := coalesce(tracked, '{}');
END $$;

-- The parts of the channel's name, or NULL when one of its columns is excluded, and must not get out this way either.
CREATE OR REPLACE FUNCTION socketio_pg.watch_parts(spec jsonb, usable text[]) RETURNS text[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT array_agg(p.part ORDER BY p.place) FILTER (WHERE p.ok)
    FROM (
        SELECT part, place, bool_and(place % 2 = 1 OR part = ANY (usable)) OVER () AS ok
        FROM jsonb_array_elements_text(spec -> 'parts') WITH ORDINALITY AS e (part, place)
    ) AS p
$$;

-- One message about the whole statement.
CREATE OR REPLACE FUNCTION socketio_pg.watch_tell(spec jsonb, channel text, payload jsonb) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF spec ->> 'tier' = 'notify' THEN
        PERFORM pg_notify(channel, payload::text);
    ELSE
        INSERT INTO socketio_pg.outbox (channel, payload, size) VALUES (channel, payload, octet_length(payload::text));
    END IF;
END $$;

-- Messages about rows, `olds` and `news` side by side (one of them is NULL but for an UPDATE), in their order. `kept`:
-- those that fulfil the condition, NULL for all. Returns how many could not be sent, since they have no channel.
CREATE OR REPLACE FUNCTION socketio_pg.watch_send(
    spec jsonb, op text, relation oid, envelope jsonb, olds jsonb[], news jsonb[], kept boolean[]
) RETURNS bigint LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    c record;
    template boolean;
    parts text[];
    fixed text := spec ->> 'channel';
    tier text := spec ->> 'tier';
    most integer := CASE WHEN spec ->> 'tier' = 'notify' THEN 7999 ELSE @MAX_PAYLOAD@ END;
    keep_old boolean := spec -> 'old';
    unsent bigint;
BEGIN
    c := socketio_pg.watch_columns(spec, relation);
    template := spec ->> 'parts' IS NOT NULL;
    parts := CASE WHEN template THEN socketio_pg.watch_parts(spec, c.usable) END;
    WITH changed AS (
        SELECT r.number, r.o, r.n,
            CASE WHEN op <> 'UPDATE' OR r.o = r.n THEN '[]' ELSE coalesce((
                SELECT jsonb_agg(t.name ORDER BY t.place) FROM unnest(c.tracked) WITH ORDINALITY AS t (name, place)
                WHERE r.n -> t.name IS DISTINCT FROM r.o -> t.name
            ), '[]') END AS columns,
            CASE WHEN template THEN socketio_pg.watch_channel(parts, r.o)
                ELSE fixed END AS old_channel,
            CASE WHEN template THEN socketio_pg.watch_channel(parts, r.n)
                ELSE fixed END AS new_channel
        FROM unnest(olds, news) WITH ORDINALITY AS r (o, n, number) WHERE kept IS NULL OR kept[r.number]
    ), piece AS (
        -- A row that goes from one channel to another is deleted in the one and inserted in the other, so that nobody
        -- sees what was or will be another's.
        SELECT number, 1 AS part, 'DELETE' AS op, old_channel AS channel, o, NULL::jsonb AS n, '[]'::jsonb AS columns,
            true AS moved
        FROM changed WHERE op = 'UPDATE' AND old_channel IS DISTINCT FROM new_channel AND old_channel IS NOT NULL
        UNION ALL
        SELECT number, 2, 'INSERT', new_channel, NULL, n, '[]', true
        FROM changed WHERE op = 'UPDATE' AND old_channel IS DISTINCT FROM new_channel
        UNION ALL
        SELECT number, 3, op, CASE WHEN op = 'DELETE' THEN old_channel ELSE new_channel END, o, n, columns, false
        FROM changed WHERE op <> 'UPDATE' OR (old_channel IS NOT DISTINCT FROM new_channel AND columns <> '[]')
    ), keyed AS (
        SELECT p.*, (SELECT jsonb_object_agg(k, coalesce(p.n, p.o) -> k) FROM unnest(c.key) AS k) AS key,
            CASE WHEN p.n IS NOT NULL THEN (SELECT jsonb_object_agg(k, p.o -> k) FROM unnest(c.key) AS k) END AS old_key
        FROM piece AS p OFFSET 0
    ), complete AS (
        SELECT k.number, k.part, k.channel,
            envelope || jsonb_build_object('op', k.op, 'pk', k.key)
                || CASE WHEN k.moved THEN '{"moved": true}'::jsonb ELSE '{}' END AS short,
            jsonb_build_object('changed', k.columns, 'new', CASE
                WHEN c.whole OR k.n IS NULL THEN k.n
                ELSE coalesce((SELECT jsonb_object_agg(s, k.n -> s) FROM unnest(c.shown) AS s WHERE k.n ? s), '{}')
            END, 'old', CASE
                WHEN k.o IS NULL THEN NULL
                -- Who has no old images still needs the key by which a row was known.
                WHEN NOT keep_old THEN CASE WHEN k.old_key <> k.key THEN k.old_key END
                WHEN c.whole THEN k.o
                ELSE coalesce((SELECT jsonb_object_agg(s, k.o -> s) FROM unnest(c.shown) AS s WHERE k.o ? s), '{}')
            END) AS images
        FROM keyed AS k OFFSET 0
    ), sized AS (
        SELECT number, part, channel, short, short || images AS everything, octet_length((short || images)::text) AS size
        FROM complete OFFSET 0
    ), message AS MATERIALIZED (
        SELECT number, part, channel, CASE
            WHEN size <= most THEN everything
            -- Not even a large key must make it fail.
            WHEN octet_length(short::text) < most - 20 THEN short || '{"truncated": true}'
            ELSE short || '{"truncated": true, "pk": null}'
        END AS payload
        FROM sized OFFSET 0
    ), logged AS (
        INSERT INTO socketio_pg.outbox (channel, payload, size)
        SELECT channel, payload, octet_length(payload::text) FROM message
        WHERE tier = 'log' AND channel IS NOT NULL ORDER BY number, part
    ), notified AS (
        SELECT pg_notify(channel, payload::text) FROM (
            SELECT channel, payload FROM message WHERE tier = 'notify' AND channel IS NOT NULL
            ORDER BY number, part
        ) AS m OFFSET 0
    )
    SELECT count(*) FILTER (WHERE channel IS NULL) + 0 * (SELECT count(*) FROM notified) INTO unsent FROM message;
    RETURN unsent;
END $$;
