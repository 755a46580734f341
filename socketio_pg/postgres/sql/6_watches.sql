-- The watches of tables: watch(), unwatch(), and the view of all watches.

-- The triggers, without their copies on partitions. The CASE keeps the planner from parsing the arguments of other
-- triggers.
CREATE OR REPLACE VIEW socketio_pg.watch_triggers AS
    SELECT t.tgrelid AS relation, t.tgname AS name,
        CASE WHEN t.tgtype & 4 > 0 THEN 'INSERT' WHEN t.tgtype & 8 > 0 THEN 'DELETE'
            WHEN t.tgtype & 16 > 0 THEN 'UPDATE' ELSE 'TRUNCATE' END AS operation,
        CASE WHEN p.pronamespace = 'socketio_pg'::regnamespace AND p.proname = 'watch_changed' AND t.tgnargs = 1 THEN
            socketio_pg.trigger_spec(t.tgargs) END AS spec
    FROM pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
    WHERE p.pronamespace = 'socketio_pg'::regnamespace AND p.proname = 'watch_changed' AND t.tgparentid = 0;

-- The part of watch() that needs its owner's privileges: creates the counter, and approves the condition in its comment.
-- Any role that may call watch() may call this, too, so it believes only the catalog: watch() has created a trigger with
-- the counter's name whose comment is the condition, as only the owner of a table can.
--
-- The condition runs with the privileges of watch_changed(). If the table's owner is trusted with these, it may be any,
-- and is tested as the trigger will run it. Otherwise it is the WHEN condition of that trigger, parsed with the
-- privileges of the caller, without subqueries, and with built-in functions that have no effects.
CREATE OR REPLACE FUNCTION socketio_pg.watch_prepare(tbl regclass, sample text, condition text, counter text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    problem text := socketio_pg.channel_problem(sample);
    probe record;
    refused text;
BEGIN
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'SG001', MESSAGE = problem, HINT = 'Pass a channel: watch(table, channel).';
    ELSIF counter !~ '^watch_[0-9a-f]{32}$' THEN
        RAISE EXCEPTION USING ERRCODE = 'SG005', MESSAGE = 'not the name of a counter';
    END IF;
    EXECUTE format('CREATE SEQUENCE socketio_pg.%I', counter);
    IF condition IS NULL THEN
        RETURN;
    END IF;
    SELECT t.oid, t.tgqual::text AS tree, c.relowner, format('%I.%I', n.nspname, c.relname) AS name INTO probe
    FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE t.tgrelid = tbl AND t.tgname = counter AND obj_description(t.oid, 'pg_trigger') = condition;
    IF probe.oid IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'SG006', MESSAGE = format('the condition is not one of the owner of %s', tbl);
    ELSIF NOT socketio_pg.trusts(probe.relowner) THEN
        IF condition IS DISTINCT FROM socketio_pg.trigger_condition(tbl, counter) THEN
            RAISE EXCEPTION USING ERRCODE = 'SG006', MESSAGE = 'the condition is not the one of the trigger';
        END IF;
        -- Built-in objects have no entries here.
        refused := (
            SELECT pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid) FROM pg_depend AS d
            WHERE d.classid = 'pg_trigger'::regclass AND d.objid = probe.oid
                AND (d.refclassid, d.refobjid) NOT IN (('pg_class'::regclass, tbl::oid),
                    ('pg_proc'::regclass, 'socketio_pg.watch_changed()'::regprocedure::oid)) LIMIT 1);
        IF refused IS NULL THEN
            refused := (
                SELECT 'function ' || p.oid::regprocedure
                FROM regexp_matches(probe.tree, ':(?:op)?funcid ([0-9]+)', 'g') AS found (id)
                JOIN pg_proc AS p ON p.oid = found.id[1]::oid
                WHERE p.pronamespace <> 'pg_catalog'::regnamespace
                    -- It is resolved again when it runs.
                    OR EXISTS (SELECT FROM pg_proc AS o WHERE o.proname = p.proname AND o.provolatile = 'v'
                        AND o.pronamespace = 'pg_catalog'::regnamespace)
                    -- A stable function may read any table; those of dates do not.
                    OR (p.provolatile <> 'i' AND NOT p.proargtypes::oid[] <@ (
                        '{timestamptz,timestamp,date,time,timetz,interval,double precision}'::regtype[]::oid[] || CASE
                        WHEN p.proname IN ('date_part', 'extract', 'date_trunc', 'to_char', 'to_timestamp', 'timezone')
                        THEN 'text'::regtype::oid END))
                LIMIT 1);
        END IF;
        IF refused IS NOT NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'SG006', MESSAGE = format(
                '"when" uses the %s, but the table belongs to a role that is not trusted with the privileges of the owner'
                    ' of the schema socketio_pg', refused),
                HINT = 'Such a condition may use built-in functions without effects, and texts in place of values of'
                    ' other types, as in new.status::text = ''paid''.';
        END IF;
    END IF;
    -- As the trigger will run it. WHEN permits system columns, which the rows of a statement do not have.
    BEGIN
        EXECUTE socketio_pg.watch_condition(condition, format(
            '(SELECT 1 AS number, NULL::%1$s AS r WHERE false) AS p__
            CROSS JOIN LATERAL (SELECT %2$s FROM (SELECT (p__.r).*) AS r) AS old
            CROSS JOIN LATERAL (SELECT %2$s FROM (SELECT (p__.r).*) AS r) AS new',
            tbl, coalesce(socketio_pg.watch_list(tbl, tbl, 0), '*')));
    EXCEPTION WHEN OTHERS THEN
        RAISE EXCEPTION USING ERRCODE = 'SG005', MESSAGE = format('"when" is not a valid condition: %s', SQLERRM),
            HINT = 'It is an SQL condition on the rows new and old, which runs with the privileges of the owner of'
                ' the schema socketio_pg. Qualify names outside pg_catalog, as in public.function(new.x).';
    END;
    EXECUTE format('COMMENT ON SEQUENCE socketio_pg.%I IS %L', counter,
        jsonb_build_object('when', condition, 'relation', tbl::oid, 'table', probe.name));
END $$;

-- Drops the counters of watches that no longer exist: unwatched, or dropped with their tables. Names of counters are
-- never reused, so this cannot drop a counter that another transaction has just created.
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
        -- IF EXISTS, as a concurrent call may drop it, too.
        EXECUTE format('DROP SEQUENCE IF EXISTS socketio_pg.%I', counter);
    END LOOP;
    DELETE FROM socketio_pg.watch_failure AS f WHERE f.ctid = ANY (ARRAY(
        SELECT o.ctid FROM socketio_pg.watch_failure AS o
        WHERE NOT EXISTS (SELECT FROM socketio_pg.watch_triggers AS t WHERE t.spec ->> 'counter' = o.counter)
        FOR UPDATE SKIP LOCKED));
END $$;

CREATE OR REPLACE FUNCTION socketio_pg.watch_failures(counter text) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN starts_with(counter, 'watch_')
        -- Older versions count with the sequence.
        THEN coalesce(pg_sequence_last_value(to_regclass(format('socketio_pg.%I', counter))), 0) + coalesce((
            SELECT sum(f.failures) FROM socketio_pg.watch_failure AS f WHERE f.counter = watch_failures.counter), 0)::bigint END
$$;

-- For operators and programs: all watches. `failures`: the number of committed statements (with per => 'row': rows) since
-- watch() was called for which not all messages were sent. `last_error`: of the newest one, without data of its row.
CREATE OR REPLACE VIEW socketio_pg.watches AS
    SELECT format('%I.%I', n.nspname, c.relname) AS table_name, w.spec ->> 'channel' AS channel, w.operations,
        CASE WHEN w.spec ->> 'columns' IS NOT NULL THEN
            ARRAY(SELECT jsonb_array_elements_text(w.spec -> 'columns')) END AS columns,
        CASE WHEN w.spec ->> 'exclude' IS NOT NULL THEN
            ARRAY(SELECT jsonb_array_elements_text(w.spec -> 'exclude')) END AS exclude,
        w.spec ->> 'when' AS "when", (w.spec -> 'old')::boolean AS old, w.spec ->> 'tier' AS tier,
        w.spec ->> 'per' AS per, (w.spec ->> 'bulk_limit')::integer AS bulk_limit,
        socketio_pg.watch_failures(w.spec ->> 'counter') AS failures, failed.error AS last_error,
        failed.failed_at AS last_error_at
    FROM (
        SELECT t.relation, t.spec, array_agg(t.operation ORDER BY
            array_position('{INSERT,UPDATE,DELETE,TRUNCATE}', t.operation)) AS operations
        FROM socketio_pg.watch_triggers AS t GROUP BY t.relation, t.spec
    ) AS w JOIN pg_catalog.pg_class AS c ON c.oid = w.relation JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN LATERAL (
        SELECT f.error, f.failed_at FROM socketio_pg.watch_failure AS f
        WHERE f.counter = w.spec ->> 'counter' AND f.error IS NOT NULL ORDER BY f.failed_at DESC LIMIT 1
    ) AS failed ON true;

-- Stops watching a table on one channel, or on all. Returns the number of watches that were removed.
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
    PERFORM socketio_pg.watch_order(tbl);
    PERFORM socketio_pg.watch_sweep();
    RETURN (SELECT count(DISTINCT c) FROM unnest(channels) AS c);
END $$;

-- Returns which changes of a partitioned or inherited table a watch does not see, and what to do: '…: …'.
CREATE OR REPLACE FUNCTION socketio_pg.watch_blind(tbl regclass, per text) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(array_agg(b.blind), '{}')
    FROM pg_class AS c
    CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhparent = c.oid) AS has_children,
        EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = c.oid) AS has_parent) AS i
    CROSS JOIN LATERAL (VALUES
        (c.relkind = 'p' AND per = 'statement',
            'statements that name one of its partitions: Use per => ''row'', or watch the partitions too.'),
        (c.relkind = 'r' AND has_children AND per = 'statement',
            'statements that name a table which inherits from it: Watch these tables too.'),
        (c.relkind = 'r' AND has_children AND per = 'row',
            'rows of tables that inherit from it: Watch these tables too.'),
        (c.relispartition AND per = 'statement',
            'statements that name its partitioned table: Use per => ''row'', or watch that table.'),
        (has_parent AND NOT c.relispartition AND per = 'statement',
            'statements that name a table from which it inherits: Use per => ''row'', or watch that table too.')
    ) AS b (applies, blind)
    WHERE c.oid = tbl AND b.applies
$$;

-- Creates the trigger that sends the messages for one operation, and returns its name. Partitions have copies of row
-- triggers: their own watches need other names.
CREATE OR REPLACE FUNCTION socketio_pg.watch_create(tbl regclass, operation text, spec jsonb) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name CONSTANT text := format(
        'socketio_pg_watch_%s_%s', left(md5(concat(spec ->> 'channel', spec ->> 'key')), 12), lower(operation));
BEGIN
    EXECUTE format(
        'CREATE TRIGGER %I AFTER %s ON %s %s EXECUTE FUNCTION socketio_pg.watch_changed(%L)', name, operation, tbl,
        CASE
            WHEN operation = 'TRUNCATE' THEN 'FOR EACH STATEMENT'
            WHEN spec ->> 'per' = 'row' THEN 'FOR EACH ROW'
            WHEN operation = 'INSERT' THEN 'REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT'
            WHEN operation = 'DELETE' THEN 'REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT'
            ELSE 'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT'
        END, spec);
    RETURN name;
END $$;

-- Sends each committed change of a table to a channel, by default table:schema.table; see docs/watch.md. Another call
-- with the same table and channel replaces the options. Returns the channel. Raises SG001 for an invalid channel name,
-- SG005 for an invalid option.
CREATE OR REPLACE FUNCTION socketio_pg.watch(
    tbl regclass,
    channel text DEFAULT NULL,
    -- NULL: all; but not TRUNCATE if the channel has placeholders.
    operations text[] DEFAULT NULL,
    columns text[] DEFAULT NULL,
    exclude text[] DEFAULT NULL,
    "when" text DEFAULT NULL,
    old boolean DEFAULT true,
    tier text DEFAULT 'log',
    per text DEFAULT 'statement',
    -- NULL: no limit.
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
    invalid text;
    problem text;
    hint text;
    operation text;
    key text;
    spec jsonb;
    blind text;
BEGIN
    SELECT c.relkind, c.relpersistence, c.relname, c.relowner, n.nspname INTO relation
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = tbl;
    names := ARRAY(SELECT a.attname FROM pg_attribute AS a WHERE a.attrelid = tbl AND a.attnum > 0 AND NOT a.attisdropped);
    IF relation.relkind IS NULL OR relation.relkind NOT IN ('r', 'p') OR relation.relpersistence = 't' THEN
        problem := format('%s cannot be watched: it is not a table, or it is temporary', coalesce(tbl::text, 'NULL'));
    ELSIF relation.nspname = 'socketio_pg' THEN
        problem := format('%s cannot be watched: it belongs to socketio_pg itself', tbl);
    END IF;

    IF channel IS NULL THEN
        channel := format('table:%s.%s', relation.nspname, relation.relname);
        sample := channel;
        IF channel ~ '[{}]' THEN
            problem := 'the table''s name contains a brace: pass a channel';
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
                problem := format('%s is not a valid channel with placeholders', quote_literal(channel));
                hint := 'A placeholder is a column name in braces, as in ''orders:{customer_id}''.';
            END IF;
            -- A value has at least one character.
            sample := '';
            FOR n IN 1 .. cardinality(parts) LOOP
                sample := sample || CASE WHEN n % 2 = 1 THEN parts[n] ELSE 'x' END;
                IF n % 2 = 0 AND parts[n] <> ALL (names) THEN
                    problem := format('{%s} in the channel is not a column of %s', parts[n], tbl);
                ELSIF n % 2 = 0 AND parts[n] = ANY (exclude) THEN
                    problem := format('{%s} in the channel is an excluded column: its values would be disclosed', parts[n]);
                END IF;
            END LOOP;
        END IF;
    END IF;

    IF operations IS NULL THEN
        operations := CASE WHEN parts = '{}' THEN all_operations ELSE all_operations[1:3] END;
    ELSE
        operations := ARRAY(SELECT DISTINCT upper(o) FROM unnest(operations) AS o);
        invalid := (
            SELECT coalesce(o, 'NULL') FROM unnest(operations) AS o WHERE o IS NULL OR o <> ALL (all_operations) LIMIT 1
        );
        IF invalid IS NOT NULL OR operations = '{}' THEN
            problem := coalesce(invalid || ' is not an operation', 'operations must not be empty');
            hint := 'Operations are INSERT, UPDATE, DELETE and TRUNCATE.';
        ELSIF 'TRUNCATE' = ANY (operations) AND parts <> '{}' THEN
            problem := 'TRUNCATE has no rows with values for the channel''s placeholders';
            hint := 'Watch it on a separate channel: watch(table, ''name'', ''{TRUNCATE}'').';
        END IF;
    END IF;
    invalid := (
        SELECT coalesce(o, 'NULL') FROM unnest(columns || exclude) AS o WHERE o IS NULL OR o <> ALL (names) LIMIT 1
    );
    IF invalid IS NOT NULL THEN
        problem := format('%s has no column %s', tbl, quote_ident(invalid));
    END IF;
    IF tier IS NULL OR tier NOT IN ('log', 'notify') THEN
        problem := 'tier must be ''log'' or ''notify''';
    ELSIF per IS NULL OR per NOT IN ('statement', 'row') THEN
        problem := 'per must be ''statement'' or ''row''';
    ELSIF bulk_limit < 0 THEN
        problem := 'bulk_limit must not be negative';
        hint := 'NULL means no limit.';
    ELSIF old IS NULL THEN
        problem := 'old must be true or false';
    END IF;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'SG005', MESSAGE = problem, HINT = coalesce(hint, 'See docs/watch.md for all options.');
    END IF;
    IF NOT pg_has_role(relation.relowner, 'USAGE') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('%s belongs to %s, and only its owner may watch it', tbl, relation.relowner::regrole);
    END IF;
    key := (SELECT max(t.spec ->> 'key') FROM socketio_pg.watch_triggers AS t WHERE t.relation = tbl);
    PERFORM socketio_pg.unwatch(tbl, channel);
    -- Only the owner of the table can comment on its trigger: see watch_prepare().
    IF "when" IS NOT NULL THEN
        IF socketio_pg.trusts(relation.relowner) THEN
            EXECUTE format('CREATE TRIGGER %I AFTER INSERT ON %s EXECUTE FUNCTION socketio_pg.watch_changed()',
                counter, tbl);
        ELSE
            BEGIN
                EXECUTE format(E'CREATE TRIGGER %I AFTER UPDATE ON %s FOR EACH ROW WHEN (%s\n)'
                    ' EXECUTE FUNCTION socketio_pg.watch_changed()', counter, tbl, "when");
            EXCEPTION WHEN OTHERS THEN
                RAISE EXCEPTION USING ERRCODE = 'SG005',
                    MESSAGE = format('"when" is not a valid condition: %s', SQLERRM),
                    HINT = 'It is an SQL condition on the rows new and old, without subqueries.';
            END;
            "when" := socketio_pg.trigger_condition(tbl, counter);
        END IF;
        EXECUTE format('COMMENT ON TRIGGER %I ON %s IS %L', counter, tbl, "when");
    END IF;
    -- After unwatch(), which drops counters that no trigger names.
    PERFORM socketio_pg.watch_prepare(tbl, sample, "when", counter);
    IF "when" IS NOT NULL THEN
        EXECUTE format('DROP TRIGGER %I ON %s', counter, tbl);
    END IF;
    spec := jsonb_build_object(
        'channel', channel, 'parts', nullif(parts, '{}'), 'relation', tbl::oid, 'columns', columns,
        'exclude', exclude, 'numbers', ARRAY(
            SELECT a.attnum FROM pg_attribute AS a WHERE a.attrelid = tbl AND a.attname = ANY (exclude)
        ), 'when', "when", 'old', old, 'tier', tier, 'per', per, 'bulk_limit', bulk_limit, 'counter', counter,
        -- Identifies the table in the names of 4_watch_order.sql, also after a dump and restore.
        'key', coalesce(key, left(replace(gen_random_uuid()::text, '-', ''), 12)));
    FOREACH operation IN ARRAY operations LOOP
        PERFORM socketio_pg.watch_create(tbl, operation, spec);
    END LOOP;
    PERFORM socketio_pg.watch_order(tbl);
    FOREACH blind IN ARRAY socketio_pg.watch_blind(tbl, per) LOOP
        RAISE NOTICE USING MESSAGE = format('the watch of %s does not see %s', tbl, split_part(blind, ': ', 1)),
            HINT = split_part(blind, ': ', 2);
    END LOOP;
    RETURN channel;
END $$;

-- Approves the conditions of watches that an older version has made, where the table's owner is trusted. Others send
-- nothing, and count failures, until watch() is called again.
DO $$
DECLARE
    found record;
BEGIN
    IF (SELECT version FROM socketio_pg.schema_version) < 4 THEN
        FOR found IN
            SELECT DISTINCT t.relation, t.spec ->> 'counter' AS counter, t.spec ->> 'when' AS "when",
                format('%I.%I', n.nspname, c.relname) AS name
            FROM socketio_pg.watch_triggers AS t JOIN pg_catalog.pg_class AS c ON c.oid = t.relation
                JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
            WHERE t.spec ->> 'when' IS NOT NULL AND socketio_pg.trusts(c.relowner)
                AND to_regclass(format('socketio_pg.%I', t.spec ->> 'counter')) IS NOT NULL
        LOOP
            EXECUTE format('COMMENT ON SEQUENCE socketio_pg.%I IS %L', found.counter,
                jsonb_build_object('when', found."when", 'relation', found.relation, 'table', found.name));
        END LOOP;
    END IF;
END $$;

-- Gives watches that an older version has made the triggers of 4_watch_order.sql. It does not wait for a table's lock,
-- which a writer may hold that waits for this installation. Tables that are left out send as before, in the order in which
-- their triggers fire.
DO $$
DECLARE
    tbl regclass;
    new_key text;
    found record;
BEGIN
    FOR tbl, new_key IN
        SELECT t.relation, coalesce(max(t.spec ->> 'key'), left(replace(gen_random_uuid()::text, '-', ''), 12))
        FROM socketio_pg.watch_triggers AS t JOIN pg_catalog.pg_class AS c ON c.oid = t.relation
        WHERE t.spec ->> 'channel' IS NOT NULL AND pg_has_role(c.relowner, 'USAGE')
        GROUP BY t.relation HAVING bool_or(t.spec ->> 'key' IS NULL)
    LOOP
        BEGIN
            EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE NOWAIT', tbl);
            FOR found IN
                SELECT w.*, t.tgenabled AS enabled FROM socketio_pg.watch_triggers AS w
                JOIN pg_catalog.pg_trigger AS t ON t.tgrelid = w.relation AND t.tgname = w.name
                WHERE w.relation = tbl AND w.spec ->> 'key' IS NULL
            LOOP
                EXECUTE format('DROP TRIGGER %I ON %s', found.name, tbl);
                found.name := socketio_pg.watch_create(
                    tbl, found.operation, found.spec || jsonb_build_object('key', new_key));
                IF found.enabled <> 'O' THEN
                    EXECUTE format('ALTER TABLE %s %s TRIGGER %I', tbl, CASE found.enabled
                        WHEN 'D' THEN 'DISABLE' WHEN 'A' THEN 'ENABLE ALWAYS' ELSE 'ENABLE REPLICA' END, found.name);
                END IF;
            END LOOP;
            PERFORM socketio_pg.watch_order(tbl);
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING USING MESSAGE = format('the watches of %s keep the order of an older version: %s', tbl, SQLERRM);
        END;
    END LOOP;
END $$;

DO $$
DECLARE
    part regprocedure;
    grantee regrole;
BEGIN
    FOR part IN
        SELECT oid FROM pg_catalog.pg_proc
        WHERE pronamespace = 'socketio_pg'::regnamespace
            AND (proname ~ '^(un)?watch' OR proname IN ('trusts', 'trigger_spec', 'trigger_condition'))
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', part);
    END LOOP;
    -- Roles that an older version has allowed to watch.
    FOR part, grantee IN
        SELECT p.oid, a.grantee::regrole FROM pg_catalog.pg_proc AS w CROSS JOIN aclexplode(w.proacl) AS a
            CROSS JOIN pg_catalog.pg_proc AS p
        WHERE w.pronamespace = 'socketio_pg'::regnamespace AND w.proname = 'watch' AND a.grantee <> w.proowner
            AND p.pronamespace = w.pronamespace AND p.proname IN ('trusts', 'trigger_spec', 'trigger_condition',
                'watch_begin', 'watch_end', 'watch_sort', 'watch_row', 'watch_hook', 'watch_order', 'watch_create', 'watch_blind')
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', part, grantee);
    END LOOP;
END $$;
