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
--   socketio_pg.place        the newest place that was given, '' before the first watched statement
--   socketio_pg.run          the key and operation of the statement that has the newest place, while no other message follows
--                            it; with '-' before its first row. Otherwise ''
--   socketio_pg.sent         the newest id in the outbox before the newest message of the transaction that has a place
--   socketio_pg.sent_first   the same for the first message
--   socketio_pg.runs_<key><operation>
--                            the open statements of a table, outermost first: '|', the value of `sent` when the statement
--                            began, '/', and the places of its rows. '|17/ 3' means that all rows have place 3. With
--                            '|17/ 3 5 7' the last row has place 7, the one before it place 5, and all others place 3:
--                            these are not counted, for speed.
--   socketio_pg.rows_<key><operation>_<depth>, socketio_pg.row_<counter>_<depth>
--                            for row triggers: the calls for a statement with several places, as 'first place:calls'.
--                            The depth is the number of open statements: a nested one may run between two calls.

-- Opens a statement. The trigger function BEFORE each statement, with the key of the table as its argument. It has the
-- privileges of the writer and needs none.
CREATE OR REPLACE FUNCTION socketio_pg.watch_begin() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    statement CONSTANT text := TG_ARGV[0] || TG_OP;
    runs CONSTANT text := 'socketio_pg.runs_' || statement;
    place text := current_setting('socketio_pg.place', true);
    places text := '';
    -- PL/pgSQL evaluates an assignment faster than PERFORM.
    done text;
BEGIN
    -- What is not a number counts as 0, as in next_place(): it must not fail the statement.
    IF place IS NULL OR place !~ '^[0-9]{1,15}$' THEN
        place := set_config('socketio_pg.place', '0', true);
    END IF;
    -- It has no rows, for which watch_hook() would do this.
    IF TG_OP = 'TRUNCATE' THEN
        places := ' ' || set_config('socketio_pg.place', (place::bigint + 1)::text, true);
    END IF;
    done := set_config('socketio_pg.run', statement || '-', true);
    done := set_config(runs,
        concat(current_setting(runs, true), '|', current_setting('socketio_pg.sent', true), '/', places), true);
    RETURN NULL;
END $$;

-- Closes a statement. The trigger function AFTER each statement, whose trigger fires after those that send messages.
CREATE OR REPLACE FUNCTION socketio_pg.watch_end() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    runs CONSTANT text := 'socketio_pg.runs_' || TG_ARGV[0] || TG_OP;
    value CONSTANT text := current_setting(runs, true);
    done text;
BEGIN
    done := set_config('socketio_pg.run', '', true);
    done := set_config(runs, coalesce(left(value, -strpos(reverse(value), '|')), ''), true);
    RETURN NULL;
END $$;

-- The same for tables with row triggers, which do not know how many rows there are. Messages of a statement with several
-- places have provisional ones: see watch_row_place().
CREATE OR REPLACE FUNCTION socketio_pg.watch_sort() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    statement CONSTANT text := TG_ARGV[0] || TG_OP;
    runs CONSTANT text := 'socketio_pg.runs_' || statement;
    value CONSTANT text := current_setting(runs, true);
    frame CONSTANT text[] := regexp_match(right(value, strpos(reverse(value), '|') - 1), '^([0-9]{0,18})/( ([0-9]{1,15}).*)$');
    calls text[];
    done text;
BEGIN
    -- Unless the newest place is that of these rows.
    IF current_setting('socketio_pg.place', true) <> frame[3] THEN
        BEGIN
            calls := regexp_match(current_setting(format('socketio_pg.rows_%s_%s', statement,
                cardinality(string_to_array(value, '|'))), true), format('^%s:([0-9]{1,9})$', frame[3]));
            PERFORM socketio_pg.watch_reorder(
                coalesce(nullif(frame[1], ''), nullif(current_setting('socketio_pg.sent_first', true), ''))::bigint,
                frame[3]::bigint, CASE WHEN calls IS NOT NULL THEN socketio_pg.watch_places(frame[2], calls[1]::bigint) END);
        EXCEPTION WHEN assert_failure OR OTHERS THEN
            RAISE WARNING USING MESSAGE = format('socketio_pg.watch, %s on %I.%I: messages are not in order, SQLSTATE %s',
                TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME, SQLSTATE);
        END;
    END IF;
    done := set_config('socketio_pg.run', '', true);
    done := set_config(runs, coalesce(left(value, -strpos(reverse(value), '|')), ''), true);
    RETURN NULL;
END $$;

-- Returns the provisional place of the next row of a statement with several places, the first of which is `place`: a
-- negative number of both. `frames` are the open statements of the table, `counter` is that of the watch.
CREATE OR REPLACE FUNCTION socketio_pg.watch_row_place(place bigint, statement text, frames text, counter text) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    depth CONSTANT integer := cardinality(string_to_array(frames, '|'));
    name CONSTANT text := format('socketio_pg.row_%s_%s', counter, depth);
    calls CONSTANT bigint := least(1048575, 1 + coalesce(
        substring(current_setting(name, true) FROM format('^%s:([0-9]{1,9})$', place))::bigint, 0));
    value CONSTANT text := set_config(name, format('%s:%s', place, calls), true);
    done text := set_config(format('socketio_pg.rows_%s_%s', statement, depth), value, true);
BEGIN
    RETURN -(place * 1048576 + calls);
END $$;

-- Never called: its trigger exists for the condition, see watch_hook().
CREATE OR REPLACE FUNCTION socketio_pg.watch_row() RETURNS trigger
LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;

-- Returns the condition of a trigger AFTER each row. PostgreSQL evaluates it right after the row has changed, and not when
-- the trigger would fire. It is always false, and notes the row's place instead. It has the privileges of the writer, so
-- it uses only built-in functions. While rows of one statement follow each other, only the first comparison is evaluated.
--
-- `partitioned`: for INSERT, the row may belong to an UPDATE that moves it to another partition. PostgreSQL parses the stored condition for each statement,
-- which takes longer than evaluating it: it is short.
DROP FUNCTION IF EXISTS socketio_pg.watch_hook(text, text, boolean, boolean);
CREATE OR REPLACE FUNCTION socketio_pg.watch_hook(key text, op text, partitioned boolean) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT replace(replace($hook$
        current_setting('socketio_pg.run', true) IS DISTINCT FROM {statement}
        AND int4range '[1,50000]' @> length(current_setting({runs}, true))
        AND set_config({runs}, current_setting({runs}, true) || (' ' || set_config(
                'socketio_pg.place', (current_setting('socketio_pg.place', true)::bigint + 1)::text, true)), true)
            = set_config('socketio_pg.run',
                CASE current_setting('socketio_pg.run', true) WHEN {statement} || '-' THEN {statement} ELSE '' END, true)$hook$,
        '{runs}', 'text ''socketio_pg.runs_'' || {statement}'),
        '{statement}', CASE WHEN op = 'INSERT' AND partitioned THEN format(
            'CASE WHEN current_setting(%L, true) <> '''' THEN text %L ELSE %L END',
            'socketio_pg.runs_' || key || op, key || op, key || 'UPDATE') ELSE format('text %L', key || op) END)
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
                ('row', format('AFTER %s ON %s FOR EACH ROW WHEN (%s) EXECUTE FUNCTION socketio_pg.watch_row()',
                    watched.operation, tbl, socketio_pg.watch_hook(watched.key, watched.operation, watched.partitioned)))
            ) AS t (kind, definition) WHERE t.kind <> 'row' OR watched.operation <> 'TRUNCATE'
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

-- Returns the places of `total` rows from those that were noted, such as ' 3 5 7'. If these do not fit, all rows have the
-- first.
CREATE OR REPLACE FUNCTION socketio_pg.watch_places(noted text, total bigint) RETURNS bigint[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN cardinality(p.places) <= total AND length(noted) < 49000
        THEN array_fill(p.places[1], ARRAY[total::integer - cardinality(p.places)]) || p.places
        ELSE array_fill(p.places[1], ARRAY[total::integer]) END
    FROM (
        SELECT CASE WHEN noted ~ '^( [0-9]{1,15})+$' THEN string_to_array(ltrim(noted), ' ')::bigint[]
            ELSE ARRAY[split_part(noted, ' ', 2)::bigint] END AS places
    ) AS p
$$;

-- Gives new ids to the messages that this transaction has sent before others that precede them: those with an id above
-- `after` and a later place than `place`. `places`: those of the rows that have provisional ones, of a statement whose
-- first place is `place`. Not in a SERIALIZABLE transaction: it would read the end of the outbox, where all others write,
-- and one of two concurrent transactions would fail.
DROP FUNCTION IF EXISTS socketio_pg.watch_reorder(bigint, bigint);
CREATE OR REPLACE FUNCTION socketio_pg.watch_reorder(after bigint, place bigint, places bigint[] DEFAULT NULL) RETURNS void
LANGUAGE sql AS $$
    WITH later AS (
        DELETE FROM socketio_pg.outbox AS o
        WHERE o.id > watch_reorder.after AND o.xid = pg_current_xact_id() AND (o.place > watch_reorder.place
            OR (places IS NOT NULL AND -o.place / 1048576 = watch_reorder.place AND o.place < 0))
            AND current_setting('transaction_isolation') <> 'serializable'
        RETURNING o.*
    ), placed AS (
        SELECT l.*, CASE WHEN l.place < 0 THEN coalesce(places[-l.place % 1048576], watch_reorder.place)
            ELSE l.place END AS new_place FROM later AS l
    )
    INSERT INTO socketio_pg.outbox (channel, payload, size, published_at, place, xid, meta)
    SELECT p.channel, p.payload, p.size, p.published_at, p.new_place, p.xid, p.meta FROM placed AS p ORDER BY p.new_place, p.id
$$;
