-- The trigger function of watch(), and SQL that it puts together for a table. What 4_watch.sql says of its parts holds here.

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
    SELECT format('SELECT c__.channel, greatest(count(i__.o), count(i__.n)) AS rows
        FROM %s CROSS JOIN LATERAL (%s) AS c__ (channel) WHERE %s AND %s GROUP BY 1',
        CASE WHEN paired THEN format(
            '%s CROSS JOIN LATERAL (SELECT to_jsonb(p__.o) AS o, to_jsonb(p__.n) AS n OFFSET 0) AS i__',
            socketio_pg.watch_rows(op))
        ELSE '(SELECT to_jsonb(r__) AS o, NULL::jsonb AS n FROM old_rows AS r__
            UNION ALL SELECT NULL, to_jsonb(r__) FROM new_rows AS r__) AS i__'
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

-- The trigger of all watches, for rows and for statements. Whatever goes wrong in here, the user's transaction goes on:
-- it is warned, without anything of a row in the warning, and counted in a sequence, for which nobody waits.
CREATE OR REPLACE FUNCTION socketio_pg.watch_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
-- Values look the same whatever the session has set.
SET TimeZone = 'UTC' SET DateStyle = 'ISO' SET IntervalStyle = 'postgres'
SET bytea_output = 'hex' SET extra_float_digits = 1
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
                    '(SELECT 1 AS number) AS p__ LEFT JOIN (SELECT ($1).* %s) AS old ON true
                    LEFT JOIN (SELECT ($2).* %s) AS new ON true',
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
                IF spec ->> 'parts' IS NULL AND spec ->> 'when' IS NULL
                    AND (c.whole OR TG_OP <> 'UPDATE' OR old_count <> new_count)
                THEN
                    PERFORM socketio_pg.watch_tell(spec, parts[1], envelope
                        || jsonb_build_object('count', greatest(old_count, new_count), 'truncated', true));
                ELSE
                    FOR told IN EXECUTE socketio_pg.watch_bulk(
                        spec, TG_OP, c.whole, TG_OP <> 'UPDATE' OR old_count = new_count
                    ) USING parts, c.tracked
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
                        SELECT array_agg(to_jsonb(r.*)) INTO olds
                        FROM (SELECT * FROM old_rows OFFSET passed LIMIT share) AS r;
                    END IF;
                    IF TG_OP <> 'DELETE' THEN
                        SELECT array_agg(to_jsonb(r.*)) INTO news
                        FROM (SELECT * FROM new_rows OFFSET passed LIMIT share) AS r;
                    END IF;
                    unsent := unsent + socketio_pg.watch_send(
                        spec, TG_OP, relation, envelope, olds, news, kept[passed + 1 : passed + share]);
                END LOOP;
            END IF;
        END IF;
        IF unsent > 0 THEN
            problem := format('%s of the rows have no channel: a placeholder is NULL, or the name is not allowed', unsent);
        END IF;
    EXCEPTION WHEN assert_failure OR OTHERS THEN
        problem := CASE WHEN SQLSTATE = 'SG005' THEN SQLERRM
            ELSE format('it failed with SQLSTATE %s, nothing was sent', SQLSTATE) END;
    END;
    IF problem IS NOT NULL THEN
        RAISE WARNING USING
            MESSAGE = format('socketio_pg.watch, %s of %I.%I: %s', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME, problem);
        BEGIN
            PERFORM nextval(format('socketio_pg.%I', spec ->> 'counter')::regclass);
        EXCEPTION WHEN OTHERS THEN
            NULL; -- somebody has dropped it
        END;
    END IF;
    RETURN NULL;
END $$;
