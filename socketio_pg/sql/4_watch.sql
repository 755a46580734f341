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
    wanted text[] := CASE WHEN spec ->> 'columns' IS NOT NULL THEN ARRAY(SELECT jsonb_array_elements_text(spec -> 'columns')) END;
    hidden text[] := CASE WHEN spec ->> 'exclude' IS NULL THEN '{}' ELSE ARRAY(SELECT jsonb_array_elements_text(spec -> 'exclude')) END;
    numbers smallint[];
    in_key smallint[];
BEGIN
    IF hidden <> '{}' THEN
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
    in_key := (SELECT i.indkey::smallint[] FROM pg_index AS i WHERE i.indrelid = relation AND i.indisprimary);
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
        SELECT number, 1 AS part, 'DELETE' AS op, old_channel AS channel, o, NULL::jsonb AS n, '[]'::jsonb AS columns, true AS moved
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
            envelope || jsonb_build_object('op', k.op, 'pk', k.key) || CASE WHEN k.moved THEN '{"moved": true}'::jsonb ELSE '{}' END AS short,
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

-- SQL for FROM: the rows of a statement, as `new` and `old` with the table's columns, which are NULL where there is none;
-- p__ has their number and both as a whole. Old and new row of an UPDATE stand at the same place in the transition tables.
CREATE OR REPLACE FUNCTION socketio_pg.watch_rows(op text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE op
        WHEN 'INSERT' THEN
            '(SELECT row_number() OVER () AS number, r__ AS n, NULL::text AS o FROM new_rows AS r__) AS p__
            CROSS JOIN LATERAL (SELECT (p__.n).*) AS new LEFT JOIN (SELECT * FROM new_rows WHERE false) AS old ON true'
        WHEN 'DELETE' THEN
            '(SELECT row_number() OVER () AS number, r__ AS o, NULL::text AS n FROM old_rows AS r__) AS p__
            CROSS JOIN LATERAL (SELECT (p__.o).*) AS old LEFT JOIN (SELECT * FROM old_rows WHERE false) AS new ON true'
        ELSE
            '(SELECT number, o, n FROM (SELECT row_number() OVER () AS number, r__ AS o FROM old_rows AS r__) AS o__
            JOIN (SELECT row_number() OVER () AS number, r__ AS n FROM new_rows AS r__) AS n__ USING (number)) AS p__
            CROSS JOIN LATERAL (SELECT (p__.o).*) AS old CROSS JOIN LATERAL (SELECT (p__.n).*) AS new'
    END
$$;

-- SQL for the condition of a watch, an array with an answer for each row in their order. A line's end ends a comment.
CREATE OR REPLACE FUNCTION socketio_pg.watch_condition(condition text, rows text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT format(E'SELECT array_agg(coalesce((%s\n), false) ORDER BY p__.number) FROM %s', condition, rows)
$$;

-- SQL for a statement that changed too many rows: each channel that has to be told, NULL for rows without one, and how
-- many of the rows are its. $1: the parts of the channel's name, $2: the columns in which a change counts.
CREATE OR REPLACE FUNCTION socketio_pg.watch_bulk(spec jsonb, op text, whole boolean, paired boolean) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT format('SELECT c__.channel, greatest(count(i__.o), count(i__.n)) AS rows FROM %s CROSS JOIN LATERAL (%s) AS c__ (channel)
        WHERE %s AND %s GROUP BY 1',
        CASE WHEN paired THEN format(
            '%s CROSS JOIN LATERAL (SELECT to_jsonb(p__.o) AS o, to_jsonb(p__.n) AS n OFFSET 0) AS i__', socketio_pg.watch_rows(op))
        ELSE '(SELECT to_jsonb(r__) AS o, NULL::jsonb AS n FROM old_rows AS r__
            UNION ALL SELECT NULL, to_jsonb(r__) FROM new_rows AS r__) AS i__'
        END,
        CASE WHEN spec ->> 'parts' IS NULL THEN 'SELECT $1[1]'
        ELSE 'SELECT socketio_pg.watch_channel($1, i__.o) WHERE i__.o IS NOT NULL
            UNION SELECT socketio_pg.watch_channel($1, i__.n) WHERE i__.n IS NOT NULL'
        END,
        CASE WHEN paired AND spec ->> 'when' IS NOT NULL THEN format(E'coalesce((%s\n), false)', spec ->> 'when') ELSE 'true' END,
        CASE WHEN paired AND op = 'UPDATE' AND NOT whole THEN
            '(EXISTS (SELECT FROM unnest($2) AS k WHERE i__.n -> k IS DISTINCT FROM i__.o -> k)'
            || CASE WHEN spec ->> 'parts' IS NULL THEN ')'
                ELSE ' OR socketio_pg.watch_channel($1, i__.n) IS DISTINCT FROM socketio_pg.watch_channel($1, i__.o))' END
        ELSE 'true' END
    )
$$;

-- The trigger of all watches, for rows and for statements. Whatever goes wrong in here, the user's transaction goes on:
-- it is warned, without anything of a row in the warning, and counted in a sequence, for which nobody waits.
CREATE OR REPLACE FUNCTION socketio_pg.watch_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
-- Values look the same whatever the session has set.
SET TimeZone = 'UTC' SET DateStyle = 'ISO' SET IntervalStyle = 'postgres' SET bytea_output = 'hex' SET extra_float_digits = 1
-- The few statements here have one plan, made once in a session; those that are put together are planned each time.
SET plan_cache_mode = 'force_generic_plan' SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    -- So many rows at a time are in memory.
    share CONSTANT integer := 5000;
    spec jsonb;
    relation oid := TG_RELID;
    envelope jsonb;
    most bigint;
    old_count bigint := 0;
    new_count bigint := 0;
    c record;
    parts text[];
    olds jsonb[];
    news jsonb[];
    kept boolean[];
    old_row record;
    new_row record;
    told record;
    unsent bigint := 0;
    problem text;
BEGIN
    BEGIN
        spec := TG_ARGV[0];
        most := spec ->> 'bulk_limit';
        -- What all its messages have. The transaction has a number before the outbox gives out ids, as in publish().
        envelope := jsonb_build_object('op', TG_OP, 'schema', TG_TABLE_SCHEMA, 'table', TG_TABLE_NAME,
            'at', clock_timestamp(), 'txid', pg_current_xact_id()::text);
        IF TG_OP = 'TRUNCATE' THEN
            PERFORM socketio_pg.watch_tell(spec, spec ->> 'channel', envelope
                || '{"pk": null, "new": null, "old": null, "changed": []}');
        ELSIF TG_LEVEL = 'ROW' THEN
            -- The trigger of a partition is a copy: the message is about the table that is watched.
            IF relation <> (spec ->> 'relation')::oid AND (
                SELECT p.relispartition FROM pg_class AS p WHERE p.oid = TG_RELID
            ) THEN
                SELECT a.relid, envelope || jsonb_build_object('schema', n.nspname, 'table', t.relname)
                INTO relation, envelope
                FROM pg_partition_ancestors(TG_RELID) WITH ORDINALITY AS a (relid, place)
                JOIN pg_class AS t ON t.oid = a.relid JOIN pg_namespace AS n ON n.oid = t.relnamespace
                WHERE EXISTS (SELECT FROM pg_trigger AS g WHERE g.tgrelid = a.relid AND g.tgname = TG_NAME)
                ORDER BY a.place DESC LIMIT 1;
            END IF;
            IF spec ->> 'when' IS NOT NULL THEN
                old_row := OLD;
                new_row := NEW;
                -- For its type.
                IF TG_OP = 'INSERT' THEN
                    old_row := NEW;
                ELSIF TG_OP = 'DELETE' THEN
                    new_row := OLD;
                END IF;
                EXECUTE socketio_pg.watch_condition(spec ->> 'when', format(
                    '(SELECT 1 AS number) AS p__ LEFT JOIN (SELECT ($1).* %s) AS old ON true LEFT JOIN (SELECT ($2).* %s) AS new ON true',
                    CASE TG_OP WHEN 'INSERT' THEN 'WHERE false' END, CASE TG_OP WHEN 'DELETE' THEN 'WHERE false' END
                )) INTO kept USING old_row, new_row;
            END IF;
            unsent := socketio_pg.watch_send(spec, TG_OP, relation, envelope,
                ARRAY[CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END],
                ARRAY[CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END], kept);
        ELSE
            IF TG_OP <> 'INSERT' THEN
                SELECT count(*) INTO old_count FROM old_rows;
            END IF;
            IF TG_OP <> 'DELETE' THEN
                SELECT count(*) INTO new_count FROM new_rows;
            END IF;
            -- A row that should have gone to another partition and was kept from it by a trigger there: who belongs to
            -- whom is not known then.
            IF greatest(old_count, new_count) > most OR (TG_OP = 'UPDATE' AND old_count <> new_count) THEN
                c := socketio_pg.watch_columns(spec, relation);
                parts := CASE WHEN spec ->> 'parts' IS NULL THEN ARRAY[spec ->> 'channel']
                    ELSE socketio_pg.watch_parts(spec, c.usable) END;
                IF spec ->> 'parts' IS NULL AND spec ->> 'when' IS NULL AND (c.whole OR TG_OP <> 'UPDATE' OR old_count <> new_count) THEN
                    PERFORM socketio_pg.watch_tell(spec, parts[1], envelope
                        || jsonb_build_object('count', greatest(old_count, new_count), 'truncated', true));
                ELSE
                    FOR told IN EXECUTE socketio_pg.watch_bulk(spec, TG_OP, c.whole, TG_OP <> 'UPDATE' OR old_count = new_count)
                        USING parts, c.tracked
                    LOOP
                        IF told.channel IS NULL THEN
                            unsent := told.rows;
                        ELSE
                            PERFORM socketio_pg.watch_tell(spec, told.channel, envelope
                                || jsonb_build_object('count', told.rows, 'truncated', true));
                        END IF;
                    END LOOP;
                END IF;
            ELSE
                IF spec ->> 'when' IS NOT NULL THEN
                    EXECUTE socketio_pg.watch_condition(spec ->> 'when', socketio_pg.watch_rows(TG_OP)) INTO kept;
                END IF;
                FOR passed IN 0 .. greatest(old_count, new_count) - 1 BY share LOOP
                    IF TG_OP <> 'INSERT' THEN
                        SELECT array_agg(to_jsonb(r.*)) INTO olds FROM (SELECT * FROM old_rows OFFSET passed LIMIT share) AS r;
                    END IF;
                    IF TG_OP <> 'DELETE' THEN
                        SELECT array_agg(to_jsonb(r.*)) INTO news FROM (SELECT * FROM new_rows OFFSET passed LIMIT share) AS r;
                    END IF;
                    unsent := unsent + socketio_pg.watch_send(spec, TG_OP, relation, envelope, olds, news, kept[passed + 1 : passed + share]);
                END LOOP;
            END IF;
        END IF;
        IF unsent > 0 THEN
            problem := format('%s of the rows have no channel: a placeholder is NULL, or the name is not allowed', unsent);
        END IF;
    EXCEPTION WHEN assert_failure OR OTHERS THEN
        problem := CASE WHEN SQLSTATE = 'SG005' THEN SQLERRM ELSE format('it failed with SQLSTATE %s, nothing was sent', SQLSTATE) END;
    END;
    IF problem IS NOT NULL THEN
        RAISE WARNING USING MESSAGE = format('socketio_pg.watch, %s of %I.%I: %s', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME, problem);
        BEGIN
            PERFORM nextval(format('socketio_pg.%I', spec ->> 'counter')::regclass);
        EXCEPTION WHEN OTHERS THEN
            NULL; -- somebody has dropped it
        END;
    END IF;
    RETURN NULL;
END $$;
