-- Who watches which table: watch(), unwatch(), and the view of what there is.

-- The triggers, without the copies that partitions have. The argument ends with a zero byte in the catalog; the CASE
-- keeps the planner from reading those of other triggers, which are no JSON.
CREATE OR REPLACE VIEW socketio_pg.watch_triggers AS
    SELECT t.tgrelid AS relation, t.tgname AS name,
        CASE WHEN t.tgtype & 4 > 0 THEN 'INSERT' WHEN t.tgtype & 8 > 0 THEN 'DELETE'
            WHEN t.tgtype & 16 > 0 THEN 'UPDATE' ELSE 'TRUNCATE' END AS operation,
        CASE WHEN p.pronamespace = 'socketio_pg'::regnamespace AND p.proname = 'watch_changed' AND t.tgnargs = 1 THEN
            convert_from(substring(t.tgargs FROM 1 FOR octet_length(t.tgargs) - 1), 'UTF8')::jsonb END AS spec
    FROM pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
    WHERE p.pronamespace = 'socketio_pg'::regnamespace AND p.proname = 'watch_changed' AND t.tgparentid = 0;

-- What watch() needs its owner's rights for: to try the condition as the trigger will run it, and to make the counter.
CREATE OR REPLACE FUNCTION socketio_pg.watch_prepare(tbl regclass, sample text, condition text, counter text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    problem text := socketio_pg.channel_problem(sample);
BEGIN
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'SG001', MESSAGE = problem, HINT = 'Name a channel: watch(table, channel).';
    END IF;
    IF condition IS NOT NULL THEN
        BEGIN
            EXECUTE socketio_pg.watch_condition(condition, format(
                '(SELECT 1 AS number, NULL::%s AS r WHERE false) AS p__
                CROSS JOIN LATERAL (SELECT (p__.r).*) AS old CROSS JOIN LATERAL (SELECT (p__.r).*) AS new', tbl));
        EXCEPTION WHEN OTHERS THEN
            RAISE EXCEPTION USING ERRCODE = 'SG005', MESSAGE = format('"when" does not work: %s', SQLERRM),
                HINT = 'It is a condition over the rows new and old, run with the rights of the owner of the schema'
                    ' socketio_pg. What is not of pg_catalog needs its schema''s name, as in public.function(new.x).';
        END;
    END IF;
    EXECUTE format('CREATE SEQUENCE socketio_pg.%I', counter);
END $$;

-- Drops the counters of watches that are no more: unwatched, or gone with their tables. A counter's name is never used
-- again, so one that another transaction has just made cannot be meant.
CREATE OR REPLACE FUNCTION socketio_pg.watch_sweep() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    counter name;
BEGIN
    FOR counter IN
        SELECT c.relname FROM pg_class AS c
        WHERE c.relnamespace = 'socketio_pg'::regnamespace AND c.relkind = 'S' AND starts_with(c.relname, 'watch_')
            AND NOT EXISTS (SELECT FROM socketio_pg.watch_triggers AS t WHERE t.spec ->> 'counter' = c.relname)
    LOOP
        -- Another call may sweep as well.
        EXECUTE format('DROP SEQUENCE IF EXISTS socketio_pg.%I', counter);
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION socketio_pg.watch_failures(counter text) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(pg_sequence_last_value(to_regclass(format('socketio_pg.%I', counter))), 0)
$$;

-- For people and programs: what is watched. `failures`: how many statements (with per => 'row': rows) were not, or not
-- wholly, told of since watch() was called.
CREATE OR REPLACE VIEW socketio_pg.watches AS
    SELECT format('%I.%I', n.nspname, c.relname) AS table_name, w.spec ->> 'channel' AS channel, w.operations,
        CASE WHEN w.spec ->> 'columns' IS NOT NULL THEN
            ARRAY(SELECT jsonb_array_elements_text(w.spec -> 'columns')) END AS columns,
        CASE WHEN w.spec ->> 'exclude' IS NOT NULL THEN
            ARRAY(SELECT jsonb_array_elements_text(w.spec -> 'exclude')) END AS exclude,
        w.spec ->> 'when' AS "when", (w.spec -> 'old')::boolean AS old, w.spec ->> 'tier' AS tier,
        w.spec ->> 'per' AS per, (w.spec ->> 'bulk_limit')::integer AS bulk_limit,
        socketio_pg.watch_failures(w.spec ->> 'counter') AS failures
    FROM (
        SELECT t.relation, t.spec, array_agg(t.operation ORDER BY
            array_position('{INSERT,UPDATE,DELETE,TRUNCATE}', t.operation)) AS operations
        FROM socketio_pg.watch_triggers AS t GROUP BY t.relation, t.spec
    ) AS w JOIN pg_catalog.pg_class AS c ON c.oid = w.relation JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace;

-- Stop watching a table on one channel, or on all. Returns how many watches there were.
CREATE OR REPLACE FUNCTION socketio_pg.unwatch(tbl regclass, channel text DEFAULT NULL) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found record;
    channels text[] := '{}';
BEGIN
    FOR found IN
        SELECT t.name, t.spec ->> 'channel' AS channel FROM socketio_pg.watch_triggers AS t
        WHERE t.relation = tbl AND (unwatch.channel IS NULL OR t.spec ->> 'channel' = unwatch.channel)
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', found.name, tbl);
        channels := array_append(channels, found.channel);
    END LOOP;
    PERFORM socketio_pg.watch_sweep();
    RETURN (SELECT count(DISTINCT c) FROM unnest(channels) AS c);
END $$;

-- Send each committed change of a table to a channel, by default table:schema.table; docs/watch.md says all. The same
-- table and channel again replaces the options. Returns the channel. Raises SG001 for a channel's name, SG005 for an
-- option.
CREATE OR REPLACE FUNCTION socketio_pg.watch(
    tbl regclass,
    channel text DEFAULT NULL,
    -- NULL: all, but for TRUNCATE when the channel has placeholders.
    operations text[] DEFAULT NULL,
    columns text[] DEFAULT NULL,
    exclude text[] DEFAULT NULL,
    "when" text DEFAULT NULL,
    old boolean DEFAULT true,
    tier text DEFAULT 'log',
    per text DEFAULT 'statement',
    -- NULL: none.
    bulk_limit integer DEFAULT 1000
) RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    all_operations CONSTANT text[] := '{INSERT,UPDATE,DELETE,TRUNCATE}';
    counter CONSTANT text := 'watch_' || replace(gen_random_uuid()::text, '-', '');
    relation record;
    names text[];
    parts text[] := '{}';
    sample text;
    split text[];
    strange text;
    problem text;
    hint text;
    operation text;
    spec jsonb;
BEGIN
    SELECT c.relkind, c.relpersistence, c.relname, n.nspname INTO relation
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = tbl;
    names := ARRAY(SELECT a.attname FROM pg_attribute AS a WHERE a.attrelid = tbl AND a.attnum > 0 AND NOT a.attisdropped);
    IF relation.relkind IS NULL OR relation.relkind NOT IN ('r', 'p') OR relation.relpersistence = 't' THEN
        problem := format('%s cannot be watched: it is no table, or a temporary one', coalesce(tbl::text, 'NULL'));
    ELSIF relation.nspname = 'socketio_pg' THEN
        problem := format('%s cannot be watched: it is of the log itself', tbl);
    END IF;

    IF channel IS NULL THEN
        channel := format('table:%s.%s', relation.nspname, relation.relname);
        sample := channel;
        IF channel ~ '[{}]' THEN
            problem := 'the table''s name has a brace in it: name a channel';
        END IF;
    ELSE
        sample := channel;
        IF channel ~ '[{}]' THEN
            LOOP
                split := regexp_match(sample, '^([^{}]*)[{]([^{}]+)[}](.*)$');
                EXIT WHEN split IS NULL;
                parts := parts || split[1:2];
                sample := split[3];
            END LOOP;
            parts := array_append(parts, sample);
            IF sample ~ '[{}]' THEN
                problem := format('%s is no channel with placeholders', quote_literal(channel));
                hint := 'A placeholder is a column''s name in braces, as in ''orders:{customer_id}''.';
            END IF;
            -- A value is one character at least.
            sample := '';
            FOR n IN 1 .. cardinality(parts) LOOP
                sample := sample || CASE WHEN n % 2 = 1 THEN parts[n] ELSE 'x' END;
                IF n % 2 = 0 AND parts[n] <> ALL (names) THEN
                    problem := format('{%s} in the channel is no column of %s', parts[n], tbl);
                ELSIF n % 2 = 0 AND parts[n] = ANY (exclude) THEN
                    problem := format('{%s} in the channel is to be excluded: its values would get out', parts[n]);
                END IF;
            END LOOP;
        END IF;
    END IF;

    IF operations IS NULL THEN
        operations := CASE WHEN parts = '{}' THEN all_operations ELSE all_operations[1:3] END;
    ELSE
        operations := ARRAY(SELECT DISTINCT upper(o) FROM unnest(operations) AS o);
        strange := (
            SELECT coalesce(o, 'NULL') FROM unnest(operations) AS o WHERE o IS NULL OR o <> ALL (all_operations) LIMIT 1
        );
        IF strange IS NOT NULL OR operations = '{}' THEN
            problem := coalesce(strange || ' is no operation', 'operations must not be empty');
            hint := 'They are INSERT, UPDATE, DELETE and TRUNCATE.';
        ELSIF 'TRUNCATE' = ANY (operations) AND parts <> '{}' THEN
            problem := 'TRUNCATE has no row to fill the channel''s placeholders with';
            hint := 'Watch it on a channel of its own: watch(table, ''name'', ''{TRUNCATE}'').';
        END IF;
    END IF;
    strange := (
        SELECT coalesce(o, 'NULL') FROM unnest(columns || exclude) AS o WHERE o IS NULL OR o <> ALL (names) LIMIT 1
    );
    IF strange IS NOT NULL THEN
        problem := format('%s has no column %s', tbl, quote_ident(strange));
    END IF;
    IF tier IS NULL OR tier NOT IN ('log', 'notify') THEN
        problem := 'tier must be ''log'' or ''notify''';
    ELSIF per IS NULL OR per NOT IN ('statement', 'row') THEN
        problem := 'per must be ''statement'' or ''row''';
    ELSIF bulk_limit < 0 THEN
        problem := 'bulk_limit must not be negative';
        hint := 'NULL is without a limit.';
    ELSIF old IS NULL THEN
        problem := 'old must be true or false';
    END IF;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'SG005', MESSAGE = problem, HINT = coalesce(hint, 'docs/watch.md has all options.');
    END IF;
    PERFORM socketio_pg.unwatch(tbl, channel);
    -- After that, which sweeps away counters that no trigger names.
    PERFORM socketio_pg.watch_prepare(tbl, sample, "when", counter);
    spec := jsonb_build_object(
        'channel', channel, 'parts', nullif(parts, '{}'), 'relation', tbl::oid, 'columns', columns,
        'exclude', exclude, 'numbers', ARRAY(
            SELECT a.attnum FROM pg_attribute AS a WHERE a.attrelid = tbl AND a.attname = ANY (exclude)
        ), 'when', "when", 'old', old, 'tier', tier, 'per', per, 'bulk_limit', bulk_limit, 'counter', counter);
    FOREACH operation IN ARRAY operations LOOP
        EXECUTE format(
            'CREATE TRIGGER %I AFTER %s ON %s %s EXECUTE FUNCTION socketio_pg.watch_changed(%L)',
            format('socketio_pg_watch_%s_%s', left(md5(channel), 12), lower(operation)), operation, tbl,
            CASE
                WHEN operation = 'TRUNCATE' THEN 'FOR EACH STATEMENT'
                WHEN per = 'row' THEN 'FOR EACH ROW'
                WHEN operation = 'INSERT' THEN 'REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT'
                WHEN operation = 'DELETE' THEN 'REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT'
                ELSE 'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT'
            END, spec);
    END LOOP;
    RETURN channel;
END $$;

DO $$
DECLARE
    part regprocedure;
BEGIN
    FOR part IN
        SELECT oid FROM pg_catalog.pg_proc
        WHERE pronamespace = 'socketio_pg'::regnamespace AND proname ~ '^(un)?watch'
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', part);
    END LOOP;
END $$;
