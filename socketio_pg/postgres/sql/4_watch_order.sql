-- The order of messages within a transaction: the one in which its rows were changed and publish() was called.
--
-- The trigger that sends the messages of a statement fires when the statement ends, after the user's triggers have run
-- statements of their own. So each watched table has further triggers, which note the places of row changes in settings of
-- the transaction; a rollback to a savepoint restores them. In the trigger that sends, messages of the same transaction
-- that were sent too early get new ids.
--
-- All messages keep getting their ids when a statement ends, while it holds the locks on its rows. An id drawn earlier
-- would order messages of different transactions wrongly: a statement may wait for another transaction between two rows.
--
-- Any role may change the settings, and thereby the order of its own messages.
--
--   socketio_pg.place        the newest place that was given
--   socketio_pg.run          the table and operation of the newest place, while no other message follows it; with a dot
--                            if the hook has to note each row
--   socketio_pg.sent         an id in the outbox before the newest message of the transaction that has a place
--   socketio_pg.sent_first   the same for the first message
--   socketio_pg.runs_<key><operation>
--                            the open statements of a table, outermost first: '|', the value of `sent` when the statement
--                            began, '/', and the places of its rows. '|17/3' means that all rows have place 3.
--                            '|17/3 5.. 7' means that the last row has place 7, the three before it place 5, and all
--                            others place 3: these are not counted, for speed.

-- Opens a statement. The trigger function BEFORE each statement, with the key of the table as its argument. It has the
-- privileges of the writer and needs none.
CREATE OR REPLACE FUNCTION socketio_pg.watch_begin() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    runs CONSTANT text := 'socketio_pg.runs_' || TG_ARGV[0] || TG_OP;
    place text := '';
BEGIN
    PERFORM set_config('socketio_pg.run', '', true);
    -- It has no rows, for which watch_hook() would do this.
    IF TG_OP = 'TRUNCATE' THEN
        place := coalesce(substring(current_setting('socketio_pg.place', true) FROM '^[0-9]{1,15}$'), '0')::bigint + 1;
        PERFORM set_config('socketio_pg.place', place, true);
    END IF;
    PERFORM set_config(runs,
        concat(current_setting(runs, true), '|', current_setting('socketio_pg.sent', true), '/', place), true);
    RETURN NULL;
END $$;

-- Closes a statement. The trigger function AFTER each statement, whose trigger fires after those that send messages.
CREATE OR REPLACE FUNCTION socketio_pg.watch_end() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    runs CONSTANT text := 'socketio_pg.runs_' || TG_ARGV[0] || TG_OP;
BEGIN
    PERFORM set_config('socketio_pg.run', '', true);
    PERFORM set_config(runs, coalesce(substring(current_setting(runs, true) FROM '^(.*)[|]'), ''), true);
    RETURN NULL;
END $$;

-- The same for tables with row triggers. It also puts the messages of all rows into order, once for all of them.
CREATE OR REPLACE FUNCTION socketio_pg.watch_sort() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    runs CONSTANT text := 'socketio_pg.runs_' || TG_ARGV[0] || TG_OP;
    frame CONSTANT text[] := regexp_match(current_setting(runs, true), '([0-9]{0,18})/([0-9]{1,15})[. 0-9]*$');
BEGIN
    IF frame[2] <> current_setting('socketio_pg.place', true) THEN
        BEGIN
            PERFORM socketio_pg.watch_reorder(
                coalesce(nullif(frame[1], ''), current_setting('socketio_pg.sent_first', true))::bigint, frame[2]::bigint);
        EXCEPTION WHEN assert_failure OR OTHERS THEN
            RAISE WARNING USING MESSAGE = format('socketio_pg.watch, %s on %I.%I: messages are not in order, SQLSTATE %s',
                TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME, SQLSTATE);
        END;
    END IF;
    PERFORM set_config('socketio_pg.run', '', true);
    PERFORM set_config(runs, coalesce(substring(current_setting(runs, true) FROM '^(.*)[|]'), ''), true);
    RETURN NULL;
END $$;

-- Never called: its trigger exists for the condition, see watch_hook().
CREATE OR REPLACE FUNCTION socketio_pg.watch_row() RETURNS trigger
LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;

-- Returns the condition of a trigger AFTER each row. PostgreSQL evaluates it right after the row has changed, and not when
-- the trigger would fire. It is always false, and notes the row's place instead. It has the privileges of the writer, so
-- it uses only built-in functions. While rows of one statement follow each other, only the first comparison is evaluated.
--
-- `each_row`: each row is counted, for row triggers, which cannot count from the end. `partitioned`: for INSERT, the row
-- may belong to an UPDATE that moves it to another partition.
CREATE OR REPLACE FUNCTION socketio_pg.watch_hook(key text, op text, each_row boolean, partitioned boolean) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT replace(replace($hook$
        current_setting('socketio_pg.run', true) IS DISTINCT FROM {run}
        AND current_setting({runs}, true) <> '' AND length(current_setting({runs}, true)) < 50000
        AND set_config({runs}, current_setting({runs}, true) || CASE
            WHEN current_setting('socketio_pg.run', true) = {run} || '.' THEN '.'
            ELSE CASE WHEN right(current_setting({runs}, true), 1) = '/' THEN '' ELSE ' ' END
                || set_config('socketio_pg.place', (coalesce(nullif(
                    current_setting('socketio_pg.place', true), ''), '0')::bigint + 1)::text, true)
            END, true) <> ''
        AND set_config('socketio_pg.run', {run} || $hook$ || CASE WHEN each_row THEN $hook$'.'$hook$
            ELSE $hook$CASE WHEN current_setting({runs}, true) ~ '/[0-9]+$' THEN '' ELSE '.' END$hook$ END
        || $hook$, true) IS NULL$hook$,
        '{runs}', '(''socketio_pg.runs_'' || {run})'),
        '{run}', CASE WHEN op = 'INSERT' AND partitioned THEN format(
            'CASE WHEN current_setting(%L, true) <> '''' THEN %L ELSE %L END',
            'socketio_pg.runs_' || key || op, key || op, key || 'UPDATE') ELSE format('%L::text', key || op) END)
$$;

-- Creates or drops the triggers of this file, as the watches of a table need them.
CREATE OR REPLACE FUNCTION socketio_pg.watch_order(tbl regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    watched record;
    found record;
    wanted text[] := '{}';
    name text;
BEGIN
    FOR watched IN
        SELECT t.spec ->> 'key' AS key, t.operation, bool_or(t.spec ->> 'per' = 'row') AS each_row,
            (SELECT c.relkind = 'p' FROM pg_class AS c WHERE c.oid = tbl) AS partitioned
        FROM socketio_pg.watch_triggers AS t
        WHERE t.relation = tbl AND t.spec ->> 'key' IS NOT NULL
            -- Writers evaluate the condition with their privileges.
            AND has_function_privilege('public', 'set_config(text, text, boolean)', 'EXECUTE')
            AND has_function_privilege('public', 'current_setting(text, boolean)', 'EXECUTE')
        GROUP BY 1, 2
    LOOP
        FOR found IN
            -- Triggers fire in the order of their names. For TRUNCATE, the last one before the statement gives the place.
            SELECT format('~socketio_pg_%s_%s_%s', watched.key, lower(watched.operation), t.kind) AS name, t.definition
            FROM (VALUES
                ('begin', format('BEFORE %s ON %s EXECUTE FUNCTION socketio_pg.watch_begin(%L)',
                    watched.operation, tbl, watched.key)),
                (CASE WHEN watched.each_row THEN 'sort' ELSE 'end' END, format(
                    'AFTER %s ON %s EXECUTE FUNCTION socketio_pg.%I(%L)', watched.operation, tbl,
                    CASE WHEN watched.each_row THEN 'watch_sort' ELSE 'watch_end' END, watched.key)),
                (CASE WHEN watched.each_row THEN 'each' ELSE 'row' END, format(
                    'AFTER %s ON %s FOR EACH ROW WHEN (%s) EXECUTE FUNCTION socketio_pg.watch_row()',
                    watched.operation, tbl, socketio_pg.watch_hook(
                        watched.key, watched.operation, watched.each_row, watched.partitioned)))
            ) AS t (kind, definition) WHERE t.kind NOT IN ('row', 'each') OR watched.operation <> 'TRUNCATE'
        LOOP
            wanted := array_append(wanted, found.name);
            IF NOT EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = tbl AND t.tgname = found.name) THEN
                EXECUTE format('CREATE TRIGGER %I %s', found.name, found.definition);
            END IF;
        END LOOP;
    END LOOP;
    FOR name IN
        SELECT t.tgname FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
        WHERE t.tgrelid = tbl AND t.tgparentid = 0 AND p.pronamespace = 'socketio_pg'::regnamespace
            AND p.proname IN ('watch_begin', 'watch_end', 'watch_sort', 'watch_row') AND t.tgname <> ALL (wanted)
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', name, tbl);
    END LOOP;
END $$;

-- Returns the places of `total` rows from their runs, such as '3 5.. 7'. If these do not fit, all rows have the first.
-- NULL: all rows were counted.
CREATE OR REPLACE FUNCTION socketio_pg.watch_places(runs text, total bigint) RETURNS bigint[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN total IS NULL THEN p.places WHEN cardinality(p.places) <= total AND length(runs) < 49000
        THEN array_fill(p.places[1], ARRAY[total::integer - cardinality(p.places)]) || p.places
        ELSE array_fill(p.places[1], ARRAY[total::integer]) END
    FROM (
        SELECT array_agg(rtrim(r.run, '.')::bigint ORDER BY r.number) AS places
        FROM unnest(string_to_array(runs, ' ')) WITH ORDINALITY AS r (run, number)
        CROSS JOIN generate_series(1, 1 + length(r.run) - length(rtrim(r.run, '.')))
    ) AS p
$$;

-- Gives new ids to the messages that this transaction has sent before others that precede them: those with an id above
-- `after` and a later place than `place`.
CREATE OR REPLACE FUNCTION socketio_pg.watch_reorder(after bigint, place bigint) RETURNS void
LANGUAGE sql AS $$
    WITH later AS (
        DELETE FROM socketio_pg.outbox AS o
        WHERE o.id > watch_reorder.after AND o.xid = pg_current_xact_id() AND o.place > watch_reorder.place
        RETURNING o.*
    )
    INSERT INTO socketio_pg.outbox (channel, payload, size, published_at, place, xid)
    SELECT l.channel, l.payload, l.size, l.published_at, l.place, l.xid FROM later AS l ORDER BY l.place, l.id
$$;
