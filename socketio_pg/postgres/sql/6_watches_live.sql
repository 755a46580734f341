-- Live tables: what a server needs to know about a table, and the rows that its clients may see.

-- Returns a table, its columns, and its watch on the default channel; NULL if there is no such table. `wanted` is
-- 'schema.table' without quotes. It reveals no rows.
CREATE OR REPLACE FUNCTION socketio_pg.live_table(wanted text) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found record;
    watch record;
    shown text[];
    list text;
    problem text;
BEGIN
    SELECT t.oid, t.relkind, t.relowner, t.relispartition, n.nspname, t.relname INTO found
    FROM pg_class AS t JOIN pg_namespace AS n ON n.oid = t.relnamespace
    WHERE n.nspname = split_part(wanted, '.', 1) AND t.relname = substr(wanted, strpos(wanted, '.') + 1)
        AND t.relkind IN ('r', 'p') AND t.relpersistence <> 't';
    IF found.oid IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT w.spec, array_agg(w.operation) AS operations, bool_and(t.tgenabled IN ('O', 'A')) AS enabled INTO watch
    FROM socketio_pg.watch_triggers AS w JOIN pg_trigger AS t ON t.tgrelid = w.relation AND t.tgname = w.name
    WHERE w.relation = found.oid AND w.spec ->> 'channel' = format('table:%s.%s', found.nspname, found.relname)
    GROUP BY w.spec LIMIT 1;
    IF watch.spec IS NOT NULL THEN
        BEGIN
            shown := (socketio_pg.watch_columns(watch.spec, found.oid)).tracked;
            list := socketio_pg.watch_list(found.oid, found.oid, 0);
        EXCEPTION WHEN OTHERS THEN
            problem := SQLERRM;
        END;
    END IF;
    RETURN jsonb_build_object(
        'relation', found.oid::bigint, 'schema', found.nspname, 'table', found.relname,
        'sql', format(CASE found.relkind WHEN 'r' THEN 'ONLY %I.%I' ELSE '%I.%I' END, found.nspname, found.relname),
        'watch', watch.spec, 'operations', watch.operations, 'enabled', watch.enabled, 'problem', problem,
        'blind', to_jsonb(socketio_pg.watch_blind(found.oid, watch.spec ->> 'per')),
        -- Its owner's code (policies, types) runs in a session of the server's role, and can take on that role's rights.
        'trusted', socketio_pg.trusts(found.relowner) OR found.relowner = (
                SELECT r.oid FROM pg_roles AS r WHERE r.rolname = session_user)
            OR found.relowner = (SELECT d.datdba FROM pg_database AS d WHERE d.datname = current_database()),
        'inherits', found.relkind = 'r' AND EXISTS (
            SELECT FROM pg_inherits AS i WHERE found.oid IN (i.inhparent, i.inhrelid)),
        'shown', to_jsonb(shown),
        'key', (SELECT jsonb_agg(a.attname ORDER BY k.place)
            FROM pg_index AS i CROSS JOIN unnest((i.indkey::smallint[])[0 : i.indnkeyatts - 1])
                WITH ORDINALITY AS k (number, place)
            JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.number
            WHERE i.indrelid = found.oid AND i.indisprimary),
        'columns', (SELECT jsonb_agg(jsonb_build_object(
                'name', a.attname, 'sql', quote_ident(a.attname), 'number', a.attnum,
                'type', format_type(a.atttypid, -1), 'base', format_type(b.oid, -1),
                -- The watch sends such a value as a text, to_jsonb() does not: see watch_list().
                'foreign', b.typtype <> 'e' AND strpos(coalesce(list, ''),
                    format('CASE num_nulls(r.%1$I) WHEN 0 THEN format(', a.attname)) > 0
            ) ORDER BY a.attnum)
            FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
                JOIN pg_type AS b ON b.oid = CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END
            WHERE a.attrelid = found.oid AND a.attnum > 0 AND NOT a.attisdropped));
END $$;

REVOKE ALL ON FUNCTION socketio_pg.live_table(text) FROM PUBLIC;

-- Returns the rows of changed keys that several clients may see. `statements` select them, with $1 as the keys, one for
-- each role with its claims; they return the number of a key and its row as JSON. If one fails, its key is 0, and
-- `image` is the SQLSTATE and the message. After `seconds` no further statement is started. The caller must roll its
-- transaction back.
--
-- As decide(): not SECURITY DEFINER, and without a fixed search_path.
CREATE OR REPLACE FUNCTION socketio_pg.live_rows(
    statements text[], roles text[], claims text[], keys jsonb, seconds double precision
) RETURNS TABLE (client integer, key bigint, image text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    deadline timestamptz := pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) pg_catalog.make_interval(secs => seconds);
    seen record;
    numbers bigint[];
    texts text[];
    problem text;
BEGIN
    FOR n IN 1 .. pg_catalog.cardinality(statements) LOOP
        numbers := '{}';
        texts := '{}';
        problem := NULL;
        BEGIN
            PERFORM pg_catalog.set_config('request.jwt.claims', claims[n], true);
            PERFORM pg_catalog.set_config('role', roles[n], true);
            FOR seen IN EXECUTE statements[n] USING keys LOOP
                numbers := pg_catalog.array_append(numbers, seen.place::bigint);
                texts := pg_catalog.array_append(texts, seen.image::text);
            END LOOP;
            -- Undoes the role, the settings, and whatever policies have done.
            RAISE EXCEPTION USING ERRCODE = 'SG003', MESSAGE = 'decided';
        EXCEPTION
            WHEN SQLSTATE 'SG003' THEN NULL;
            WHEN assert_failure OR OTHERS THEN
                problem := pg_catalog.format('%s %s', SQLSTATE, SQLERRM);
        END;
        IF problem IS NOT NULL THEN
            client := n;
            key := 0;
            image := problem;
            RETURN NEXT;
        ELSE
            RETURN QUERY SELECT n, u.number, u.image FROM ROWS FROM (pg_catalog.unnest(numbers), pg_catalog.unnest(texts))
                AS u (number, image);
            client := n;
            key := -1;
            image := NULL;
            RETURN NEXT;
        END IF;
        EXIT WHEN pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>) deadline;
    END LOOP;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.live_rows(text[], text[], text[], jsonb, double precision) FROM PUBLIC;

-- The roles of servers of an older version get the rights that `init` gives to new ones.
DO $$
DECLARE
    grantee regrole;
BEGIN
    FOR grantee IN
        SELECT a.grantee FROM pg_catalog.pg_proc AS p CROSS JOIN aclexplode(p.proacl) AS a
        WHERE p.pronamespace = 'socketio_pg'::regnamespace AND p.proname = 'decide' AND a.grantee NOT IN (0, p.proowner)
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION socketio_pg.live_table(text),
            socketio_pg.live_rows(text[], text[], text[], jsonb, double precision) TO %s', grantee);
    END LOOP;
END $$;
