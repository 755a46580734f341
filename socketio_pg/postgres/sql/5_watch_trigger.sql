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
CREATE OR REPLACE FUNCTION socketio_pg.watch_rows(op text, list text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT replace(replace(CASE op
        WHEN 'INSERT' THEN
            '(SELECT row_number() OVER () AS number, r__ AS n, NULL::text AS o FROM new_rows AS r__) AS p__
            CROSS JOIN LATERAL (SELECT (p__.n).*) AS new LEFT JOIN (SELECT * FROM new_rows AS r__ WHERE false) AS old ON true'
        WHEN 'DELETE' THEN
            '(SELECT row_number() OVER () AS number, r__ AS o, NULL::text AS n FROM old_rows AS r__) AS p__
            CROSS JOIN LATERAL (SELECT (p__.o).*) AS old LEFT JOIN (SELECT * FROM old_rows AS r__ WHERE false) AS new ON true'
        ELSE
            '(SELECT number, o, n FROM (SELECT row_number() OVER () AS number, r__ AS o FROM old_rows AS r__) AS o__
            JOIN (SELECT row_number() OVER () AS number, r__ AS n FROM new_rows AS r__) AS n__ USING (number)) AS p__
            CROSS JOIN LATERAL (SELECT (p__.o).*) AS old CROSS JOIN LATERAL (SELECT (p__.n).*) AS new'
    END, 'FROM old_rows', 'FROM ' || socketio_pg.watch_source('old_rows', list)),
        'FROM new_rows', 'FROM ' || socketio_pg.watch_source('new_rows', list))
$$;

-- The same for a single row, which is planned faster.
CREATE OR REPLACE FUNCTION socketio_pg.watch_single_row(op text, list text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT format('(VALUES (1)) AS p__ (number) LEFT JOIN (SELECT * FROM %s%s) AS new ON true
        LEFT JOIN (SELECT * FROM %s%s) AS old ON true',
        socketio_pg.watch_source(CASE op WHEN 'DELETE' THEN 'old_rows' ELSE 'new_rows' END, list) || ' AS r__',
        CASE op WHEN 'DELETE' THEN ' WHERE false' END,
        socketio_pg.watch_source(CASE op WHEN 'INSERT' THEN 'new_rows' ELSE 'old_rows' END, list) || ' AS r__',
        CASE op WHEN 'INSERT' THEN ' WHERE false' END)
$$;

-- Returns SQL that evaluates the condition of a watch to an array with one boolean per row, in order. The line break
-- ends a comment in the condition.
CREATE OR REPLACE FUNCTION socketio_pg.watch_condition(condition text, rows text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT format(E'SELECT array_agg(coalesce((%s\n), false) ORDER BY p__.number) FROM %s', condition, rows)
$$;

-- Returns SQL for a statement that changed too many rows: each affected channel, NULL for rows without one, and its
-- number of rows. $1: the parts of the channel's name, $2: the columns in which a change counts, $3: whether each row
-- fulfils the condition, if `counted`: values of `list` have other types than those of the table then.
CREATE OR REPLACE FUNCTION socketio_pg.watch_bulk(
    spec jsonb, op text, whole boolean, paired boolean, list text, counted boolean
) RETURNS text
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
        CASE WHEN paired AND counted THEN '$3[p__.number]'
        WHEN paired AND spec ->> 'when' IS NOT NULL THEN format(E'coalesce((%s\n), false)', spec ->> 'when')
        ELSE 'true' END,
        CASE WHEN paired AND op = 'UPDATE' AND NOT whole THEN
            '(EXISTS (SELECT FROM unnest($2) AS k WHERE i__.n -> k IS DISTINCT FROM i__.o -> k)'
            || CASE WHEN spec ->> 'parts' IS NULL THEN ')'
                ELSE ' OR socketio_pg.watch_channel($1, i__.n) IS DISTINCT FROM socketio_pg.watch_channel($1, i__.o))' END
        ELSE 'true' END
    )
$$;

-- The trigger function of all watches, for rows and for statements. A failure in here does not affect the user's
-- transaction: it raises a warning that contains no row data, and counts at commit.
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
    count bigint;
    c record;
    parts text[];
    olds jsonb[];
    news jsonb[];
    kept boolean[];
    old_row record;
    new_row record;
    old_image jsonb;
    new_image jsonb;
    bulk record;
    -- Results of watch_list(), for the condition and for JSON.
    plain_list text;
    list text;
    -- After a row without JSON, the statement's rows are read again: see watch_list().
    attempt integer := 0;
    unsent bigint := 0;
    -- Why the first of these rows has no channel.
    why text;
    row_problem text;
    doing text := 'sending';
    problem text;
    -- See 4_watch_order.sql.
    frames text;
    frame text;
    noted text;
    place bigint;
    -- Those of all rows, if they have several.
    several boolean;
    places bigint[];
    -- PL/pgSQL evaluates an assignment faster than PERFORM.
    done text;
BEGIN
    IF TG_LEVEL = 'STATEMENT' AND TG_OP <> 'TRUNCATE' THEN
        IF TG_OP = 'INSERT' THEN
            SELECT count(*) INTO new_count FROM new_rows;
        ELSIF TG_OP = 'DELETE' THEN
            SELECT count(*) INTO old_count FROM old_rows;
        ELSE
            SELECT (SELECT count(*) FROM old_rows), (SELECT count(*) FROM new_rows) INTO old_count, new_count;
        END IF;
        IF old_count + new_count = 0 THEN
            RETURN NULL;
        END IF;
    END IF;
    count := greatest(old_count, new_count);
    LOOP
        BEGIN
            spec := TG_ARGV[0];
            max_rows := spec ->> 'bulk_limit';
            -- The fields of all messages. This also assigns a transaction id before the outbox assigns ids, as in
            -- publish().
            envelope := jsonb_build_object('op', TG_OP, 'schema', TG_TABLE_SCHEMA, 'table', TG_TABLE_NAME,
                'at', clock_timestamp(), 'txid', pg_current_xact_id()::text);
            -- Opened by watch_begin(). A row trigger fires also for statements that name a partition, which are not
            -- opened, and for rows that an UPDATE moves to another partition.
            frames := current_setting('socketio_pg.runs_' || (spec ->> 'key') || TG_OP, true);
            IF TG_LEVEL = 'ROW' AND coalesce(frames, '') = '' THEN
                frames := current_setting('socketio_pg.runs_' || (spec ->> 'key') || 'UPDATE', true);
            END IF;
            frame := right(frames, strpos(reverse(frames), '|') - 1);
            IF frame ~ '^[0-9]{0,18}/ [0-9]{1,15}( |$)' THEN
                noted := split_part(frame, '/', 2);
                place := split_part(noted, ' ', 2);
            ELSE
                place := socketio_pg.next_place();
            END IF;
            several := strpos(noted, ' ' || place || ' ') > 0;
            done := socketio_pg.note_sending();
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
                    plain_list := socketio_pg.watch_list(TG_RELID, relation, 0);
                END IF;
                list := plain_list;
                IF attempt > 0 THEN
                    list := socketio_pg.watch_list(TG_RELID, relation, attempt);
                END IF;
                IF spec ->> 'parts' IS NOT NULL THEN
                    parts := socketio_pg.watch_parts(spec, c.usable);
                -- watch() validates the name, but a role that may call watch() can also create triggers itself.
                ELSIF spec ->> 'tier' <> 'notify' AND ((spec ->> 'channel') ~ '[\u0001-\u001f\u007f-\u009f]'
                    OR starts_with(spec ->> 'channel', 'socketio_pg')
                    OR octet_length(spec ->> 'channel') NOT BETWEEN 1 AND 63)
                THEN
                    RAISE EXCEPTION USING ERRCODE = 'SG005', MESSAGE = 'the channel is not valid';
                END IF;
                IF spec ->> 'when' IS NOT NULL THEN
                    PERFORM socketio_pg.watch_check(spec, relation);
                END IF;
                IF TG_LEVEL = 'ROW' THEN
                    IF several THEN
                        place := socketio_pg.watch_row_place(
                            place, (spec ->> 'key') || TG_OP, frames, spec ->> 'counter');
                    END IF;
                    IF spec ->> 'when' IS NOT NULL THEN
                        doing := 'the condition';
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
                            coalesce(plain_list, '*')
                        )) INTO kept USING old_row, new_row;
                    END IF;
                    IF kept IS NULL OR kept[1] THEN
                        doing := 'reading rows';
                        IF list IS NULL THEN
                            old_image := CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END;
                            new_image := CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END;
                        ELSE
                            IF TG_OP <> 'INSERT' THEN
                                EXECUTE format('SELECT to_jsonb(l.*) FROM (SELECT %s FROM (SELECT ($1).*) AS r) AS l', list)
                                INTO old_image USING OLD;
                            END IF;
                            IF TG_OP <> 'DELETE' THEN
                                EXECUTE format('SELECT to_jsonb(l.*) FROM (SELECT %s FROM (SELECT ($1).*) AS r) AS l', list)
                                INTO new_image USING NEW;
                            END IF;
                        END IF;
                        doing := 'sending';
                        why := socketio_pg.watch_send_row(
                            spec, TG_OP, c, envelope, parts, attempt > 0, place, old_image, new_image);
                        unsent := (why IS NOT NULL)::integer;
                    END IF;
                ELSE
                    IF several THEN
                        places := socketio_pg.watch_places(noted, count);
                    END IF;
                    -- The counts of an UPDATE differ if a trigger has kept a row from moving to another partition: old and new
                    -- rows cannot be paired then.
                    IF count > max_rows OR (TG_OP = 'UPDATE' AND old_count <> new_count) THEN
                        envelope := envelope || '{"truncated": true, "reason": "many_rows"}';
                        IF spec ->> 'parts' IS NULL AND spec ->> 'when' IS NULL
                            AND (c.whole OR TG_OP <> 'UPDATE' OR old_count <> new_count)
                        THEN
                            PERFORM socketio_pg.watch_tell(spec, spec ->> 'channel',
                                envelope || jsonb_build_object('count', count), coalesce(places[count], place));
                        ELSE
                            IF attempt > 0 AND spec ->> 'when' IS NOT NULL THEN
                                doing := 'the condition';
                                EXECUTE socketio_pg.watch_condition(
                                    spec ->> 'when', socketio_pg.watch_rows(TG_OP, plain_list)) INTO kept;
                            END IF;
                            doing := 'reading rows';
                            FOR bulk IN EXECUTE socketio_pg.watch_bulk(spec, TG_OP, c.whole,
                                TG_OP <> 'UPDATE' OR old_count = new_count, list, kept IS NOT NULL
                            ) USING coalesce(parts, ARRAY[spec ->> 'channel']), c.tracked, kept
                            LOOP
                                IF bulk.channel IS NULL THEN
                                    unsent := bulk.rows;
                                ELSE
                                    PERFORM socketio_pg.watch_tell(spec, bulk.channel,
                                        envelope || jsonb_build_object('count', bulk.rows), coalesce(places[count], place));
                                END IF;
                            END LOOP;
                        END IF;
                    ELSE
                        IF spec ->> 'when' IS NOT NULL THEN
                            doing := 'the condition';
                            EXECUTE socketio_pg.watch_condition(spec ->> 'when', CASE
                                WHEN count > 1 THEN socketio_pg.watch_rows(TG_OP, plain_list)
                                ELSE socketio_pg.watch_single_row(TG_OP, plain_list) END) INTO kept;
                        END IF;
                        IF count = 1 AND list IS NULL AND (kept IS NULL OR kept[1]) THEN
                            doing := 'reading rows';
                            IF TG_OP = 'INSERT' THEN
                                SELECT to_jsonb(r.*) INTO new_image FROM new_rows AS r;
                            ELSIF TG_OP = 'DELETE' THEN
                                SELECT to_jsonb(r.*) INTO old_image FROM old_rows AS r;
                            ELSE
                                SELECT to_jsonb(o.*), to_jsonb(n.*) INTO old_image, new_image
                                FROM old_rows AS o CROSS JOIN new_rows AS n;
                            END IF;
                            doing := 'sending';
                            why := socketio_pg.watch_send_row(
                                spec, TG_OP, c, envelope, parts, attempt > 0, place, old_image, new_image);
                            unsent := (why IS NOT NULL)::integer;
                            count := 0;
                        END IF;
                        FOR passed IN 0 .. count - 1 BY batch_size LOOP
                            doing := 'reading rows';
                            IF TG_OP <> 'INSERT' THEN
                                IF list IS NULL THEN
                                    SELECT array_agg(to_jsonb(r.*)) INTO olds
                                    FROM (SELECT * FROM old_rows OFFSET passed LIMIT batch_size) AS r;
                                ELSE
                                    EXECUTE format('SELECT array_agg(to_jsonb(l.*)) FROM (SELECT %s FROM old_rows AS r
                                        OFFSET $1 LIMIT $2) AS l', list) INTO olds USING passed, batch_size;
                                END IF;
                            END IF;
                            IF TG_OP <> 'DELETE' THEN
                                IF list IS NULL THEN
                                    SELECT array_agg(to_jsonb(r.*)) INTO news
                                    FROM (SELECT * FROM new_rows OFFSET passed LIMIT batch_size) AS r;
                                ELSE
                                    EXECUTE format('SELECT array_agg(to_jsonb(l.*)) FROM (SELECT %s FROM new_rows AS r
                                        OFFSET $1 LIMIT $2) AS l', list) INTO news USING passed, batch_size;
                                END IF;
                            END IF;
                            doing := 'sending';
                            FOR n IN 1 .. least(count - passed, batch_size) LOOP
                                IF kept IS NULL OR kept[passed + n] THEN
                                    row_problem := socketio_pg.watch_send_row(spec, TG_OP, c, envelope, parts, attempt > 0,
                                        coalesce(places[passed + n], place), olds[n], news[n]);
                                    IF row_problem IS NOT NULL THEN
                                        unsent := unsent + 1;
                                        why := coalesce(why, row_problem);
                                    END IF;
                                END IF;
                            END LOOP;
                        END LOOP;
                    END IF;
                END IF;
            END IF;
            -- Something has taken a place after this statement's first row. A row trigger leaves this to watch_sort().
            IF TG_LEVEL = 'STATEMENT' AND noted IS NOT NULL AND place::text <> current_setting('socketio_pg.place', true) THEN
                PERFORM socketio_pg.watch_reorder(coalesce(nullif(split_part(frame, '/', 1), ''),
                    nullif(current_setting('socketio_pg.sent_first', true), ''))::bigint, place);
            END IF;
            EXIT;
        EXCEPTION WHEN assert_failure OR OTHERS THEN
            IF doing = 'reading rows' AND attempt < 2 THEN
                attempt := attempt + 1;
                CONTINUE;
            END IF;
            -- The class of SQLSTATE 42 is about names, and its messages have no values.
            problem := CASE WHEN SQLSTATE IN ('SG005', 'SG006') THEN SQLERRM
                ELSE format('%s failed with SQLSTATE %s%s, nothing was sent', doing, SQLSTATE,
                    CASE WHEN starts_with(SQLSTATE, '42') THEN format(' (%s)', SQLERRM) END) END;
            EXIT;
        END;
    END LOOP;
    IF unsent > 0 AND problem IS NULL THEN
        problem := format('%s rows have no channel: %s', unsent, coalesce(
            why, 'a placeholder is NULL, or the name is invalid: ' || (spec ->> 'channel')));
    END IF;
    IF problem IS NOT NULL THEN
        RAISE WARNING USING
            MESSAGE = format('socketio_pg.watch, %s on %I.%I: %s', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME, problem);
        BEGIN
            IF starts_with(spec ->> 'counter', 'watch_') THEN
                PERFORM socketio_pg.watch_failed(spec ->> 'counter', format('%s: %s', TG_OP, problem));
            END IF;
        EXCEPTION WHEN OTHERS THEN
            NULL; -- an operator has dropped the objects that count
        END;
    END IF;
    RETURN NULL;
END $$;
