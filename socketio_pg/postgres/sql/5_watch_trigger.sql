-- The trigger function of watch(), and functions that build SQL for a table. See the head of 4_watch.sql for their
-- rights.

-- Returns SQL for FROM: a transition table, with the columns of watch_list().
CREATE OR REPLACE FUNCTION socketio_pg.watch_source(name text, list text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN list IS NULL THEN name ELSE format('(SELECT %s FROM %I AS r)', list, name) END
$$;

-- Returns SQL for FROM: the rows of a statement, as `new` and `old` with the table's columns, all NULL if there is no
-- such row; p__ has their number and both as a whole. The transition tables of an UPDATE have old and new rows in equal
-- order. `list`: the result of watch_list().
DROP FUNCTION IF EXISTS socketio_pg.watch_rows;
CREATE FUNCTION socketio_pg.watch_rows(op text, list text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT replace(replace(CASE op
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
    END, 'FROM old_rows', 'FROM ' || socketio_pg.watch_source('old_rows', list)),
        'FROM new_rows', 'FROM ' || socketio_pg.watch_source('new_rows', list))
$$;

-- Returns SQL that evaluates the condition of a watch to an array with one boolean per row, in order. The line break
-- ends a comment in the condition.
CREATE OR REPLACE FUNCTION socketio_pg.watch_condition(condition text, rows text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT format(E'SELECT array_agg(coalesce((%s\n), false) ORDER BY p__.number) FROM %s', condition, rows)
$$;

-- Returns SQL for a statement that changed too many rows: each affected channel, NULL for rows without one, and its
-- number of rows. $1: the parts of the channel's name, $2: the columns in which a change counts.
DROP FUNCTION IF EXISTS socketio_pg.watch_bulk;
CREATE FUNCTION socketio_pg.watch_bulk(spec jsonb, op text, whole boolean, paired boolean, list text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT format('SELECT c__.channel, greatest(count(i__.o), count(i__.n)) AS rows
        FROM %s CROSS JOIN LATERAL (%s) AS c__ (channel) WHERE %s AND %s GROUP BY 1',
        CASE WHEN paired THEN format(
            '%s CROSS JOIN LATERAL (SELECT to_jsonb(p__.o) AS o, to_jsonb(p__.n) AS n OFFSET 0) AS i__',
            socketio_pg.watch_rows(op, list))
        ELSE format('(SELECT to_jsonb(r__) AS o, NULL::jsonb AS n FROM %s AS r__
            UNION ALL SELECT NULL, to_jsonb(r__) FROM %s AS r__) AS i__',
            socketio_pg.watch_source('old_rows', list), socketio_pg.watch_source('new_rows', list))
        END,
        CASE WHEN spec ->> 'parts' IS NULL THEN 'SELECT $1[1]'
        ELSE 'SELECT socketio_pg.watch_channel($1, i__.o) WHERE i__.o IS NOT NULL
            UNION SELECT socketio_pg.watch_channel($1, i__.n) WHERE i__.n IS NOT NULL'
        END,
        CASE WHEN paired AND spec ->> 'when' IS NOT NULL THEN format(E'coalesce((%s\n), false)', spec ->> 'when')
        ELSE 'true' END,
        CASE WHEN paired AND op = 'UPDATE' AND NOT whole THEN
            '(EXISTS (SELECT FROM unnest($2) AS k WHERE i__.n -> k IS DISTINCT FROM i__.o -> k)'
            || CASE WHEN spec ->> 'parts' IS NULL THEN ')'
                ELSE ' OR socketio_pg.watch_channel($1, i__.n) IS DISTINCT FROM socketio_pg.watch_channel($1, i__.o))' END
        ELSE 'true' END
    )
$$;

-- The trigger function of all watches, for rows and for statements. A failure in here does not affect the user's
-- transaction: it raises a warning that contains no row data, and increments a sequence, which needs no lock.
CREATE OR REPLACE FUNCTION socketio_pg.watch_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
-- Values have the same text whatever the session's settings are.
SET TimeZone = 'UTC' SET DateStyle = 'ISO' SET IntervalStyle = 'postgres'
SET bytea_output = 'hex' SET extra_float_digits = 1
-- The static statements are planned once per session; the ones that are built with EXECUTE are planned each time.
SET plan_cache_mode = 'force_generic_plan' SET jit = off
AS $$
#variable_conflict use_variable
DECLARE
    -- The number of rows that are in memory at a time.
    batch_size CONSTANT integer := 5000;
    spec jsonb;
    relation oid := TG_RELID;
    envelope jsonb;
    max_rows bigint;
    old_count bigint := 0;
    new_count bigint := 0;
    c record;
    parts text[];
    olds jsonb[];
    news jsonb[];
    kept boolean[];
    old_row record;
    new_row record;
    bulk record;
    list text;
    unsent bigint := 0;
    problem text;
    -- See 4_watch_order.sql.
    frames text;
    frame text;
    runs text;
    place bigint;
    places bigint[];
    row_number integer;
BEGIN
    BEGIN
        spec := TG_ARGV[0];
        max_rows := spec ->> 'bulk_limit';
        -- The fields of all messages. This also assigns a transaction id before the outbox assigns ids, as in
        -- publish().
        envelope := jsonb_build_object('op', TG_OP, 'schema', TG_TABLE_SCHEMA, 'table', TG_TABLE_NAME,
            'at', clock_timestamp(), 'txid', pg_current_xact_id()::text);
        -- Opened by watch_begin(). A row trigger fires also for statements that name a partition, which are not opened.
        frames := current_setting('socketio_pg.runs_' || (spec ->> 'key') || TG_OP, true);
        IF TG_LEVEL = 'ROW' AND coalesce(frames, '') = '' THEN
            frames := current_setting('socketio_pg.runs_' || (spec ->> 'key') || 'UPDATE', true);
        END IF;
        frame := substring(frames FROM '[^|]*$');
        IF frame ~ '^[0-9]{0,18}/[0-9]{1,15}[.]*( [0-9]{1,15}[.]*)*$' THEN
            runs := split_part(frame, '/', 2);
            place := substring(runs FROM '^[0-9]+');
        ELSE
            place := socketio_pg.next_place();
        END IF;
        places := ARRAY[place];
        PERFORM socketio_pg.note_sending();
        IF TG_OP = 'TRUNCATE' THEN
            PERFORM socketio_pg.watch_tell(spec, spec ->> 'channel', envelope
                || '{"pk": null, "new": null, "old": null, "changed": []}', place);
        ELSE
            -- The trigger of a partition is a copy: the message names the table that is watched.
            IF TG_LEVEL = 'ROW' AND relation <> (spec ->> 'relation')::oid THEN
                IF (SELECT p.relispartition FROM pg_class AS p WHERE p.oid = TG_RELID) THEN
                    SELECT a.relid, envelope || jsonb_build_object('schema', n.nspname, 'table', t.relname)
                    INTO relation, envelope
                    FROM pg_partition_ancestors(TG_RELID) WITH ORDINALITY AS a (relid, place)
                    JOIN pg_class AS t ON t.oid = a.relid JOIN pg_namespace AS n ON n.oid = t.relnamespace
                    WHERE EXISTS (SELECT FROM pg_trigger AS g WHERE g.tgrelid = a.relid AND g.tgname = TG_NAME)
                    ORDER BY a.place DESC LIMIT 1;
                END IF;
            END IF;
            c := socketio_pg.watch_columns(spec, relation);
            IF c.unsure THEN
                list := socketio_pg.watch_list(TG_RELID, relation);
            END IF;
            IF TG_LEVEL = 'ROW' THEN
                IF strpos(runs, ' ') > 0 THEN
                    -- Counts the calls for this statement.
                    frames := format('socketio_pg.row_%s_%s', spec ->> 'counter', cardinality(string_to_array(frames, '|')));
                    row_number := coalesce(substring(current_setting(frames, true)
                        FROM format('^%s:([0-9]{1,9})$', place))::integer, 0) + 1;
                    PERFORM set_config(frames, format('%s:%s', place, row_number), true);
                    places := socketio_pg.watch_places(runs, NULL);
                    places := ARRAY[coalesce(places[row_number], place)];
                END IF;
                IF spec ->> 'when' IS NOT NULL THEN
                    PERFORM socketio_pg.watch_check(spec, relation);
                    old_row := OLD;
                    new_row := NEW;
                    -- Gives the unused record a row type.
                    IF TG_OP = 'INSERT' THEN
                        old_row := NEW;
                    ELSIF TG_OP = 'DELETE' THEN
                        new_row := OLD;
                    END IF;
                    EXECUTE socketio_pg.watch_condition(spec ->> 'when', format(
                        '(SELECT 1 AS number) AS p__ LEFT JOIN (SELECT %3$s FROM (SELECT ($1).*) AS r %1$s) AS old ON true
                        LEFT JOIN (SELECT %3$s FROM (SELECT ($2).*) AS r %2$s) AS new ON true',
                        CASE TG_OP WHEN 'INSERT' THEN 'WHERE false' END, CASE TG_OP WHEN 'DELETE' THEN 'WHERE false' END,
                        coalesce(list, '*')
                    )) INTO kept USING old_row, new_row;
                END IF;
                IF list IS NULL THEN
                    unsent := socketio_pg.watch_send(spec, TG_OP, c, envelope,
                        ARRAY[CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END],
                        ARRAY[CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END], kept, places);
                ELSE
                    olds := '{NULL}';
                    news := '{NULL}';
                    IF TG_OP <> 'INSERT' THEN
                        EXECUTE format('SELECT ARRAY[to_jsonb(l)] FROM (SELECT %s FROM (SELECT ($1).*) AS r) AS l', list)
                        INTO olds USING OLD;
                    END IF;
                    IF TG_OP <> 'DELETE' THEN
                        EXECUTE format('SELECT ARRAY[to_jsonb(l)] FROM (SELECT %s FROM (SELECT ($1).*) AS r) AS l', list)
                        INTO news USING NEW;
                    END IF;
                    unsent := socketio_pg.watch_send(spec, TG_OP, c, envelope, olds, news, kept, places);
                END IF;
            ELSE
                IF TG_OP <> 'INSERT' THEN
                    SELECT count(*) INTO old_count FROM old_rows;
                END IF;
                IF TG_OP <> 'DELETE' THEN
                    SELECT count(*) INTO new_count FROM new_rows;
                END IF;
                IF strpos(runs, ' ') > 0 THEN
                    places := socketio_pg.watch_places(runs, greatest(old_count, new_count));
                END IF;
                -- The counts of an UPDATE differ if a trigger has kept a row from moving to another partition: old and new
                -- rows cannot be paired then.
                IF greatest(old_count, new_count) > max_rows OR (TG_OP = 'UPDATE' AND old_count <> new_count) THEN
                    parts := CASE WHEN spec ->> 'parts' IS NULL THEN ARRAY[spec ->> 'channel']
                        ELSE socketio_pg.watch_parts(spec, c.usable) END;
                    IF spec ->> 'parts' IS NULL AND spec ->> 'when' IS NULL
                        AND (c.whole OR TG_OP <> 'UPDATE' OR old_count <> new_count)
                    THEN
                        PERFORM socketio_pg.watch_tell(spec, parts[1], envelope
                            || jsonb_build_object('count', greatest(old_count, new_count), 'truncated', true),
                            places[cardinality(places)]);
                    ELSE
                        IF spec ->> 'when' IS NOT NULL THEN
                            PERFORM socketio_pg.watch_check(spec, relation);
                        END IF;
                        FOR bulk IN EXECUTE socketio_pg.watch_bulk(
                            spec, TG_OP, c.whole, TG_OP <> 'UPDATE' OR old_count = new_count, list
                        ) USING parts, c.tracked
                        LOOP
                            IF bulk.channel IS NULL THEN
                                unsent := bulk.rows;
                            ELSE
                                PERFORM socketio_pg.watch_tell(spec, bulk.channel, envelope
                                    || jsonb_build_object('count', bulk.rows, 'truncated', true),
                                    places[cardinality(places)]);
                            END IF;
                        END LOOP;
                    END IF;
                ELSE
                    IF spec ->> 'when' IS NOT NULL THEN
                        PERFORM socketio_pg.watch_check(spec, relation);
                        EXECUTE socketio_pg.watch_condition(spec ->> 'when', socketio_pg.watch_rows(TG_OP, list)) INTO kept;
                    END IF;
                    FOR passed IN 0 .. greatest(old_count, new_count) - 1 BY batch_size LOOP
                        IF TG_OP <> 'INSERT' THEN
                            IF list IS NULL THEN
                                SELECT array_agg(to_jsonb(r.*)) INTO olds
                                FROM (SELECT * FROM old_rows OFFSET passed LIMIT batch_size) AS r;
                            ELSE
                                EXECUTE format('SELECT array_agg(to_jsonb(l)) FROM (SELECT %s FROM old_rows AS r
                                    OFFSET $1 LIMIT $2) AS l', list) INTO olds USING passed, batch_size;
                            END IF;
                        END IF;
                        IF TG_OP <> 'DELETE' THEN
                            IF list IS NULL THEN
                                SELECT array_agg(to_jsonb(r.*)) INTO news
                                FROM (SELECT * FROM new_rows OFFSET passed LIMIT batch_size) AS r;
                            ELSE
                                EXECUTE format('SELECT array_agg(to_jsonb(l)) FROM (SELECT %s FROM new_rows AS r
                                    OFFSET $1 LIMIT $2) AS l', list) INTO news USING passed, batch_size;
                            END IF;
                        END IF;
                        unsent := unsent + socketio_pg.watch_send(
                            spec, TG_OP, c, envelope, olds, news, kept[passed + 1 : passed + batch_size],
                            CASE WHEN cardinality(places) > 1 THEN places[passed + 1 : passed + batch_size] ELSE places END);
                    END LOOP;
                END IF;
            END IF;
        END IF;
        -- Something has taken a place after this statement's first row. A row trigger leaves this to watch_sort().
        IF TG_LEVEL = 'STATEMENT' AND runs IS NOT NULL AND place::text <> current_setting('socketio_pg.place', true) THEN
            PERFORM socketio_pg.watch_reorder(
                coalesce(nullif(split_part(frame, '/', 1), ''), current_setting('socketio_pg.sent_first', true))::bigint, place);
        END IF;
        IF unsent > 0 THEN
            problem := format('%s rows have no channel: a placeholder is NULL, or the channel name is invalid', unsent);
        END IF;
    EXCEPTION WHEN assert_failure OR OTHERS THEN
        problem := CASE WHEN SQLSTATE IN ('SG005', 'SG006') THEN SQLERRM
            ELSE format('sending failed with SQLSTATE %s, nothing was sent', SQLSTATE) END;
    END;
    IF problem IS NOT NULL THEN
        RAISE WARNING USING
            MESSAGE = format('socketio_pg.watch, %s on %I.%I: %s', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME, problem);
        BEGIN
            IF starts_with(spec ->> 'counter', 'watch_') THEN
                PERFORM nextval(format('socketio_pg.%I', spec ->> 'counter')::regclass);
            END IF;
        EXCEPTION WHEN OTHERS THEN
            NULL; -- the sequence was dropped
        END;
    END IF;
    RETURN NULL;
END $$;
