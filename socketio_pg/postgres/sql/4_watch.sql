-- Row changes as messages: the functions that the triggers of watch() run. The whole definition of a watch is in the
-- argument of its triggers, as one JSON text: dropping the table drops it, and a dump includes it.
--
-- The trigger function runs with its owner's privileges, so that roles that write the table need no privileges on this
-- schema. The other functions are its parts: only it may call them, and they use its search_path.

-- Returns the channel of a row: the parts '{literal,column,literal,…}' filled with the row's values. NULL if one of the
-- values is NULL or missing, or the result is not a valid channel name.
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

-- Returns the present columns of the watched table, in order: `shown` in new and old (`columns` without `exclude`), the
-- primary `key`, both together (`tracked`), and the ones that a channel may name (`usable`). `whole`: all are shown.
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
        -- A renamed column stays hidden, by its number. After a dump and restore the numbers are meaningless: a name
        -- that no longer exists may have been renamed, so nothing is sent.
        IF relation = (spec ->> 'relation')::oid THEN
            numbers := ARRAY(SELECT jsonb_array_elements_text(spec -> 'numbers'));
        ELSIF EXISTS (
            SELECT FROM unnest(hidden) AS h WHERE h NOT IN (
                SELECT a.attname FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attnum > 0)
        ) THEN
            RAISE EXCEPTION USING ERRCODE = 'SG005',
                MESSAGE = 'an excluded column no longer exists, or was renamed: call watch() again';
        END IF;
    END IF;
    -- Without the index's INCLUDE columns. The array counts from 0.
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
    -- A transaction whose snapshot is older than the table sees no columns.
    whole := coalesce(whole, wanted IS NULL AND hidden = '{}');
    shown := coalesce(shown, '{}');
    tracked := coalesce(tracked, '{}');
END $$;

-- Returns the parts of the channel's name, or NULL if one of its columns is excluded: the name must not disclose it.
CREATE OR REPLACE FUNCTION socketio_pg.watch_parts(spec jsonb, usable text[]) RETURNS text[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT array_agg(p.part ORDER BY p.place) FILTER (WHERE p.ok)
    FROM (
        SELECT part, place, bool_and(place % 2 = 1 OR part = ANY (usable)) OVER () AS ok
        FROM jsonb_array_elements_text(spec -> 'parts') WITH ORDINALITY AS e (part, place)
    ) AS p
$$;

-- Sends one message about the whole statement.
CREATE OR REPLACE FUNCTION socketio_pg.watch_tell(spec jsonb, channel text, payload jsonb) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF spec ->> 'tier' = 'notify' THEN
        PERFORM pg_notify(channel, payload::text);
    ELSE
        INSERT INTO socketio_pg.outbox (channel, payload, size) VALUES (channel, payload, octet_length(payload::text));
    END IF;
END $$;

-- Sends messages about rows in order. `olds` and `news` are parallel arrays; except for an UPDATE, one of them is NULL.
-- `kept`: whether each row fulfils the condition, NULL for all. Returns the number of messages that have no channel.
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
    max_size integer := CASE WHEN spec ->> 'tier' = 'notify' THEN 7999 ELSE @MAX_PAYLOAD@ END;
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
        -- A row that moves from one channel to another is deleted in the first and inserted in the second, so that
        -- subscribers of one channel never see values that belong to the other.
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
                -- Without old images, a message still needs the row's previous key.
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
            WHEN size <= max_size THEN everything
            -- Without the key if even that is too large.
            WHEN octet_length(short::text) < max_size - 20 THEN short || '{"truncated": true}'
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
