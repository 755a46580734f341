-- Row changes as messages: the functions that the triggers of watch() run. The whole definition of a watch is in the
-- argument of its triggers, as one JSON text: dropping the table drops it, and a dump includes it.
--
-- The trigger function runs with its owner's privileges, so that roles that write the table need no privileges on this
-- schema. The other functions are its parts: only it may call them, and they use its search_path. None of them may run
-- code of another role: watch_list() and watch_check() prevent it.

-- Drops functions of older versions that CREATE OR REPLACE cannot replace. Those of this version stay: a writer that
-- called one at this moment would fail to send.
DO $$
DECLARE
    old regprocedure;
BEGIN
    FOR old IN
        SELECT p.oid FROM pg_catalog.pg_proc AS p JOIN (VALUES
            ('watch_send', NULL),
            ('watch_list', 'relation oid, watched oid, attempt integer'),
            ('watch_columns', 'spec jsonb, relation oid, OUT shown text[], OUT key text[], OUT tracked text[],'
                ' OUT usable text[], OUT whole boolean, OUT unsure boolean'),
            ('watch_tell', 'spec jsonb, channel text, payload jsonb, place bigint'),
            ('watch_rows', 'op text, list text'),
            ('watch_failed', 'counter text, error text'),
            ('watch_bulk', 'spec jsonb, op text, whole boolean, paired boolean, list text, counted boolean')
        ) AS present (name, arguments) ON present.name = p.proname
        WHERE p.pronamespace = 'socketio_pg'::regnamespace
            AND pg_get_function_arguments(p.oid) IS DISTINCT FROM present.arguments
    LOOP
        EXECUTE format('DROP FUNCTION %s', old);
    END LOOP;
END $$;

-- Returns whether the code of a role may run with the privileges of watch_changed(): its owner's, and superusers'.
CREATE OR REPLACE FUNCTION socketio_pg.trusts(role oid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM pg_roles AS r WHERE r.oid = trusts.role AND (r.rolsuper OR r.oid IN (
            SELECT p.proowner FROM pg_proc AS p WHERE p.oid = to_regprocedure('socketio_pg.watch_changed()')))
    )
$$;

-- Returns the argument of a watch's trigger; NULL if it is not JSON, since a role may create such triggers itself.
CREATE OR REPLACE FUNCTION socketio_pg.trigger_spec(arguments bytea) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- In the catalog it ends with a zero byte.
    RETURN convert_from(substring(arguments FROM 1 FOR octet_length(arguments) - 1), 'UTF8')::jsonb;
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END $$;

-- Returns the WHEN condition of a trigger for UPDATE of rows, as PostgreSQL writes it.
CREATE OR REPLACE FUNCTION socketio_pg.trigger_condition(relation oid, trigger_name text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN starts_with(d.definition, d.head) AND right(d.definition, length(d.tail)) = d.tail
        THEN substr(d.definition, length(d.head) + 1, length(d.definition) - length(d.head) - length(d.tail)) END
    FROM (
        SELECT pg_get_triggerdef(t.oid) AS definition, ') EXECUTE FUNCTION socketio_pg.watch_changed()' AS tail,
            format('CREATE TRIGGER %I AFTER UPDATE ON %I.%I FOR EACH ROW WHEN (', t.tgname, n.nspname, c.relname) AS head
        FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE t.tgrelid = trigger_condition.relation AND t.tgname = trigger_condition.trigger_name
    ) AS d
$$;

-- Returns a value as JSON. A value that has none is an object with its text: its cast to json fails, or jsonb does not
-- accept the result.
CREATE OR REPLACE FUNCTION socketio_pg.watch_json(value anyelement) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN to_jsonb(value);
EXCEPTION WHEN assert_failure OR OTHERS THEN
    RETURN jsonb_build_object('socketio_pg: no JSON', format('%s', value));
END $$;

-- Returns a select list for rows `r` of the table, NULL if it would be '*'. Values of another role's types are texts, from
-- their output functions: to_jsonb() would call that role's cast to json, which it may create at any time. Only superusers
-- create types with an output function of their own, the others have built-in ones. Virtual generated columns have no
-- value in a trigger, so their expression is here.
-- `attempt`: 0; or 1 to use watch_json(); or 2 if that does not help, because a virtual column cannot be computed.
-- `watched` is the table that is watched, of which the other may be a partition.
CREATE OR REPLACE FUNCTION socketio_pg.watch_list(relation oid, watched oid, attempt integer) RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE
    names text[];
    types oid[];
    list text;
    all_safe boolean;
BEGIN
    IF current_setting('transaction_isolation') = 'read committed' THEN
        SELECT array_agg(a.attname ORDER BY a.attnum), array_agg(a.atttypid ORDER BY a.attnum) INTO names, types
        FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped;
    ELSIF attempt = 0 AND socketio_pg.trusts((SELECT c.relowner FROM pg_class AS c WHERE c.oid = watched)) AND NOT EXISTS (
        SELECT FROM pg_attribute AS a
        WHERE a.attrelid = watched AND a.attnum > 0 AND (a.atttypid >= 16384 OR a.attgenerated = 'v'))
    THEN
        RETURN NULL;
    ELSE
        -- The table may have changed since this transaction's snapshot. These statements see it as it is. No value of a
        -- type is read: all are NULL.
        EXECUTE format('SELECT array_agg(k.name) FROM (SELECT (NULL::%s).*) AS r CROSS JOIN jsonb_object_keys(to_jsonb(r.*)) AS k (name)',
            relation::regclass) INTO names;
        EXECUTE format('SELECT ARRAY[%s] FROM (SELECT (NULL::%s).*) AS r',
            (SELECT string_agg(format('pg_typeof(r.%I)::oid', n.name), ', ' ORDER BY n.place)
                FROM unnest(names) WITH ORDINALITY AS n (name, place)), relation::regclass) INTO types;
    END IF;
    WITH RECURSIVE part (id, inner_id) AS (
        SELECT u.id, u.id FROM unnest(types) AS u (id)
        UNION
        -- A domain's base type and an array's element type never change, and a composite type is its owner's.
        SELECT p.id, inside.id
        FROM part AS p JOIN pg_type AS t ON t.oid = p.inner_id CROSS JOIN LATERAL (
            SELECT CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.typelem END
            WHERE t.typtype = 'd' OR t.typcategory = 'A'
            UNION ALL
            SELECT a.atttypid FROM pg_attribute AS a
            WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
        ) AS inside (id)
        WHERE t.oid >= 16384
    ), unsafe AS (
        SELECT DISTINCT p.id FROM part AS p LEFT JOIN pg_type AS t ON t.oid = p.inner_id
        -- Its inner types decide about a domain and an array. A type that this snapshot does not show is unsafe.
        WHERE p.inner_id >= 16384
            AND (t.typtype = 'd' OR t.typcategory = 'A' OR socketio_pg.trusts(t.typowner)) IS NOT TRUE
    )
    SELECT string_agg(CASE
            WHEN u.id IS NOT NULL THEN format('CASE num_nulls(r.%1$I) WHEN 0 THEN format(''%%s'', r.%1$I)%2$s END AS %1$I',
                c.name, CASE WHEN t.typcategory = 'A' THEN '::text[]' END)
            WHEN v.expression IS NOT NULL AND attempt = 2 THEN
                format('jsonb_build_object(''socketio_pg: no JSON'', NULL) AS %I', c.name)
            ELSE format(CASE WHEN attempt > 0 THEN 'socketio_pg.watch_json(%s) AS %I' ELSE '%s AS %I' END,
                coalesce(v.expression, format('r.%I', c.name)), c.name)
        END, ', ' ORDER BY c.place), bool_and(u.id IS NULL AND v.expression IS NULL)
    INTO list, all_safe
    FROM unnest(names, types) WITH ORDINALITY AS c (name, type, place)
    LEFT JOIN unsafe AS u ON u.id = c.type LEFT JOIN pg_type AS t ON t.oid = c.type
    LEFT JOIN (
        -- PostgreSQL 18 permits only built-in functions in these expressions.
        SELECT a.attname AS name, CASE WHEN socketio_pg.trusts(o.relowner) OR NOT EXISTS (
            SELECT FROM pg_depend AS e WHERE e.classid = 'pg_attrdef'::regclass AND e.objid = d.oid
                AND e.refclassid <> 'pg_class'::regclass)
            THEN format('(%s)', pg_get_expr(d.adbin, d.adrelid)) ELSE 'NULL' END AS expression
        FROM pg_attribute AS a JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
            JOIN pg_class AS o ON o.oid = a.attrelid
        WHERE a.attrelid = relation AND a.attgenerated = 'v' AND NOT a.attisdropped
    ) AS v ON v.name = c.name;
    RETURN CASE WHEN attempt > 0 OR NOT all_safe THEN list END;
END $$;

-- Raises SG006 unless watch_prepare() has approved the condition for this table: a role that may call watch() can create
-- triggers with any argument.
CREATE OR REPLACE FUNCTION socketio_pg.watch_check(spec jsonb, relation oid) RETURNS void
LANGUAGE plpgsql STABLE
-- The catalog may be so small that a generic plan would read all of it.
SET enable_seqscan = off
AS $$
DECLARE
    approval jsonb := (
        SELECT d.description FROM pg_class AS s JOIN pg_description AS d ON d.objoid = s.oid AND d.objsubid = 0
        WHERE s.relnamespace = 'socketio_pg'::regnamespace AND s.relname = spec ->> 'counter'
            AND d.classoid = 'pg_class'::regclass);
BEGIN
    IF approval ->> 'when' = spec ->> 'when' THEN
        IF (approval ->> 'relation')::oid = relation THEN
            RETURN;
        -- After a dump and restore.
        ELSIF approval ->> 'table' = (
            SELECT format('%I.%I', n.nspname, c.relname)
            FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = relation)
        THEN
            RETURN;
        END IF;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'SG006',
        MESSAGE = 'the condition has not been approved for this table: call watch() again';
END $$;

-- Returns the channel of a row: the parts '{literal,column,literal,…}' filled with the row's values. NULL if one of the
-- values is NULL or missing, or the result is not a valid channel name.
CREATE OR REPLACE FUNCTION socketio_pg.watch_channel(parts text[], image jsonb) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    channel text := parts[1];
BEGIN
    FOR n IN 2 .. cardinality(parts) BY 2 LOOP
        -- A value without JSON has its text.
        channel := channel || coalesce(image -> parts[n] ->> 'socketio_pg: no JSON', image ->> parts[n]) || parts[n + 1];
    END LOOP;
    RETURN CASE WHEN image IS NOT NULL AND socketio_pg.channel_problem(channel) IS NULL THEN channel END;
END $$;

-- Returns the present columns of the watched table, in order: `shown` in new and old (`columns` without `exclude`), the
-- primary `key`, both together (`tracked`), and the ones that a channel may name (`usable`). `whole`: all are shown.
-- `unsure`: a select list is needed, see watch_list(). A type, also of an excluded column, is not built in, a generated
-- column is virtual, or the catalog may be out of date.
CREATE OR REPLACE FUNCTION socketio_pg.watch_columns(
    spec jsonb, relation oid, OUT shown text[], OUT key text[], OUT tracked text[], OUT usable text[], OUT whole boolean,
    OUT unsure boolean
) LANGUAGE plpgsql STABLE
-- The catalog may be so small that a generic plan would read all of it.
SET enable_seqscan = off
AS $$
DECLARE
    wanted text[];
    hidden text[];
    numbers smallint[];
    key_numbers smallint[];
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
    -- The array of the key's columns counts from 0. Without the index's INCLUDE columns.
    key_numbers := (SELECT (i.indkey::smallint[])[0 : i.indnkeyatts - 1]
        FROM pg_index AS i WHERE i.indrelid = relation AND i.indisprimary);
    SELECT coalesce(array_agg(a.name ORDER BY a.attnum) FILTER (WHERE a.open), '{}'),
        array_agg(a.name ORDER BY a.attnum) FILTER (WHERE a.open AND a.attnum = ANY (key_numbers)),
        count(*) = 0 OR bool_or(a.atttypid >= 16384 OR a.attgenerated = 'v')
            OR current_setting('transaction_isolation') <> 'read committed'
    INTO usable, key, unsure
    FROM (
        SELECT c.attname::text AS name, c.attnum, c.atttypid, c.attgenerated,
            (hidden IS NULL OR c.attname <> ALL (hidden)) AND (numbers IS NULL OR c.attnum <> ALL (numbers)) AS open
        FROM pg_attribute AS c WHERE c.attrelid = relation AND c.attnum > 0 AND NOT c.attisdropped
    ) AS a;
    shown := usable;
    tracked := usable;
    whole := wanted IS NULL AND hidden IS NULL;
    IF wanted IS NOT NULL THEN
        shown := ARRAY(SELECT u.name FROM unnest(usable) WITH ORDINALITY AS u (name, place)
            WHERE u.name = ANY (wanted) ORDER BY u.place);
        tracked := ARRAY(SELECT u.name FROM unnest(usable) WITH ORDINALITY AS u (name, place)
            WHERE u.name = ANY (wanted) OR u.name = ANY (key) ORDER BY u.place);
    END IF;
END $$;

-- Returns why a row has no channel, without its values.
CREATE OR REPLACE FUNCTION socketio_pg.watch_channel_problem(parts text[], image jsonb) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    channel text := parts[1];
BEGIN
    FOR n IN 2 .. cardinality(parts) BY 2 LOOP
        IF image ->> parts[n] IS NULL THEN
            RETURN format('{%s} is NULL', parts[n]);
        END IF;
        channel := channel || (image ->> parts[n]) || parts[n + 1];
    END LOOP;
    RETURN (SELECT string_agg(format('{%s}', p.part), ', ' ORDER BY p.place)
        FROM unnest(parts) WITH ORDINALITY AS p (part, place) WHERE p.place % 2 = 0)
        || ' results in an invalid name: ' || socketio_pg.channel_problem(channel);
END $$;

-- Returns the parts of the channel's name. Raises SG005 if one of its columns is excluded, as the name must not disclose
-- it, or if it does not exist any more.
CREATE OR REPLACE FUNCTION socketio_pg.watch_parts(spec jsonb, usable text[]) RETURNS text[]
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    parts CONSTANT text[] := ARRAY(SELECT jsonb_array_elements_text(spec -> 'parts'));
BEGIN
    FOR n IN 2 .. cardinality(parts) BY 2 LOOP
        IF parts[n] <> ALL (usable) THEN
            RAISE EXCEPTION USING ERRCODE = 'SG005', MESSAGE = format(
                'the channel''s placeholder {%s} is an excluded column, or no column any more: call watch() again', parts[n]);
        END IF;
    END LOOP;
    RETURN parts;
END $$;

-- Sends one message about the whole statement.
CREATE OR REPLACE FUNCTION socketio_pg.watch_tell(spec jsonb, channel text, payload jsonb, place bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF spec ->> 'tier' = 'notify' THEN
        PERFORM pg_notify(channel, payload::text);
    ELSE
        INSERT INTO socketio_pg.outbox (channel, payload, size, place, xid)
        SELECT watch_tell.channel, watch_tell.payload, octet_length(watch_tell.payload::text), watch_tell.place,
            pg_current_xact_id()
        WHERE socketio_pg.channel_problem(watch_tell.channel) IS NULL;
    END IF;
END $$;

-- Returns some of the columns of a row. They are picked, and not the others left out, because the catalog may be older
-- than the row.
CREATE OR REPLACE FUNCTION socketio_pg.watch_pick(image jsonb, names text[]) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(jsonb_object_agg(n, image -> n), '{}') FROM unnest(names) AS n WHERE image ? n
$$;

-- Returns the key of a row. A value without JSON has its text.
CREATE OR REPLACE FUNCTION socketio_pg.watch_key(image jsonb, key text[], guarded boolean) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF guarded THEN
        RETURN (SELECT jsonb_object_agg(k, coalesce(image -> k -> 'socketio_pg: no JSON', image -> k)) FROM unnest(key) AS k);
    ELSIF cardinality(key) = 1 THEN
        RETURN jsonb_build_object(key[1], image -> key[1]);
    END IF;
    RETURN (SELECT jsonb_object_agg(k, image -> k) FROM unnest(key) AS k);
END $$;

-- Sends one message about a row, with the columns `c` of watch_columns().
CREATE OR REPLACE FUNCTION socketio_pg.watch_send_message(
    spec jsonb, op text, c record, envelope jsonb, guarded boolean, place bigint, channel text, o jsonb, n jsonb,
    changed jsonb, moved boolean
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    logged CONSTANT boolean := spec ->> 'tier' <> 'notify';
    max_size CONSTANT integer := CASE WHEN logged THEN @MAX_PAYLOAD@ ELSE 7999 END;
    key CONSTANT jsonb := socketio_pg.watch_key(coalesce(n, o), c.key, guarded);
    head jsonb := envelope || jsonb_build_object('op', op, 'pk', key);
    old_image jsonb;
    new_image jsonb;
    body jsonb;
    size integer;
BEGIN
    IF moved THEN
        head := head || '{"moved": true}';
    END IF;
    IF guarded AND EXISTS (
        SELECT FROM unnest(c.shown) AS s
        WHERE n -> s ? 'socketio_pg: no JSON' OR ((spec -> 'old')::boolean AND o -> s ? 'socketio_pg: no JSON')
    ) THEN
        body := head || '{"truncated": true, "reason": "no_json"}';
        size := octet_length(body::text);
    ELSE
        new_image := CASE WHEN c.whole OR n IS NULL THEN n ELSE socketio_pg.watch_pick(n, c.shown) END;
        IF (spec -> 'old')::boolean THEN
            old_image := CASE WHEN c.whole OR o IS NULL THEN o ELSE socketio_pg.watch_pick(o, c.shown) END;
        ELSIF o IS NOT NULL AND n IS NOT NULL THEN
            -- Without old images, a message still needs the row's previous key.
            old_image := nullif(socketio_pg.watch_key(o, c.key, guarded), key);
        END IF;
        body := head || jsonb_build_object('changed', changed, 'new', new_image, 'old', old_image);
        size := octet_length(body::text);
        IF size > max_size THEN
            body := head || '{"truncated": true, "reason": "too_large"}';
            size := octet_length(body::text);
        END IF;
    END IF;
    IF size > max_size THEN
        -- Even the key is too large.
        body := body || '{"pk": null}';
        size := octet_length(body::text);
    END IF;
    IF logged THEN
        INSERT INTO socketio_pg.outbox (channel, payload, size, place, xid)
        VALUES (channel, body, size, place, pg_current_xact_id());
    ELSE
        PERFORM pg_notify(channel, body::text);
    END IF;
END $$;

-- Sends the messages about a row. `parts`: those of watch_parts(), NULL for a fixed channel. Returns why the row has no
-- channel, NULL if it has one.
CREATE OR REPLACE FUNCTION socketio_pg.watch_send_row(
    spec jsonb, op text, c record, envelope jsonb, parts text[], guarded boolean, place bigint, o jsonb, n jsonb
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    old_channel text;
    new_channel text;
    changed jsonb := '[]';
    done text;
BEGIN
    IF op = 'UPDATE' AND o = n THEN
        RETURN NULL;
    ELSIF parts IS NULL THEN
        old_channel := spec ->> 'channel';
        new_channel := old_channel;
    ELSE
        old_channel := socketio_pg.watch_channel(parts, o);
        new_channel := socketio_pg.watch_channel(parts, n);
    END IF;
    IF op = 'UPDATE' THEN
        IF old_channel IS DISTINCT FROM new_channel THEN
            -- Deleted in the first and inserted in the second, so that subscribers of one channel never see values that
            -- belong to the other.
            IF old_channel IS NOT NULL THEN
                done := socketio_pg.watch_send_message(
                    spec, 'DELETE', c, envelope, guarded, place, old_channel, o, NULL, changed, true);
            END IF;
            IF new_channel IS NULL THEN
                RETURN socketio_pg.watch_channel_problem(parts, n);
            END IF;
            done := socketio_pg.watch_send_message(
                spec, 'INSERT', c, envelope, guarded, place, new_channel, NULL, n, changed, true);
            RETURN NULL;
        END IF;
        SELECT jsonb_agg(t.name ORDER BY t.place) INTO changed
        FROM unnest(c.tracked) WITH ORDINALITY AS t (name, place) WHERE n -> t.name IS DISTINCT FROM o -> t.name;
        IF changed IS NULL THEN
            RETURN NULL;
        END IF;
    END IF;
    IF op = 'DELETE' THEN
        new_channel := old_channel;
    END IF;
    IF new_channel IS NULL THEN
        RETURN socketio_pg.watch_channel_problem(parts, coalesce(n, o));
    END IF;
    done := socketio_pg.watch_send_message(spec, op, c, envelope, guarded, place, new_channel, o, n, changed, false);
    RETURN NULL;
END $$;

-- Counts a failure of a watch: at commit, and without a lock that another transaction needs.
CREATE OR REPLACE FUNCTION socketio_pg.watch_failed(counter text, error text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO socketio_pg.watch_failure (counter, failures, error, failed_at)
    VALUES (watch_failed.counter, 1, watch_failed.error, clock_timestamp());
    -- Above READ COMMITTED, reading the rows of others could make the transaction fail.
    IF random() < 0.02 AND current_setting('transaction_isolation') = 'read committed' THEN
        WITH counted AS (
            DELETE FROM socketio_pg.watch_failure AS f WHERE f.ctid = ANY (ARRAY(
                SELECT o.ctid FROM socketio_pg.watch_failure AS o WHERE o.counter = watch_failed.counter
                FOR UPDATE SKIP LOCKED))
            RETURNING f.failures, f.error, f.failed_at
        )
        INSERT INTO socketio_pg.watch_failure (counter, failures, error, failed_at)
        SELECT watch_failed.counter, sum(c.failures),
            (array_agg(c.error ORDER BY c.failed_at DESC NULLS LAST))[1], max(c.failed_at) FROM counted AS c;
    END IF;
END $$;
