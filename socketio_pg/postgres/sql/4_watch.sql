-- Row changes as messages: the functions that the triggers of watch() run. The whole definition of a watch is in the
-- argument of its triggers, as one JSON text: dropping the table drops it, and a dump includes it.
--
-- The trigger function runs with its owner's privileges, so that roles that write the table need no privileges on this
-- schema. The other functions are its parts: only it may call them, and they use its search_path. None of them may run
-- code of another role: watch_list() and watch_check() prevent it.

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

-- Returns a select list for rows `r` of the table in which values of another role's types are texts, from their output
-- functions; NULL if there is no such type. to_jsonb() would call that role's cast to json, which it may create at any
-- time. Only superusers create types with an output function of their own, the others have built-in ones.
-- `watched` is the table that is watched, of which the other may be a partition.
CREATE OR REPLACE FUNCTION socketio_pg.watch_list(relation oid, watched oid) RETURNS text
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
    ELSIF socketio_pg.trusts((SELECT c.relowner FROM pg_class AS c WHERE c.oid = watched)) AND NOT EXISTS (
        SELECT FROM pg_attribute AS a WHERE a.attrelid = watched AND a.attnum > 0 AND a.atttypid >= 16384)
    THEN
        RETURN NULL;
    ELSE
        -- The table may have changed since this transaction's snapshot. These statements see it as it is. No value of a
        -- type is read: all are NULL.
        EXECUTE format('SELECT array_agg(k) FROM (SELECT (NULL::%s).*) AS r CROSS JOIN jsonb_object_keys(to_jsonb(r)) AS k',
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
    SELECT string_agg(CASE WHEN u.id IS NULL THEN format('r.%I', c.name) ELSE format(
            'CASE num_nulls(r.%1$I) WHEN 0 THEN format(''%%s'', r.%1$I)%2$s END AS %1$I', c.name,
            CASE WHEN t.typcategory = 'A' THEN '::text[]' END) END, ', ' ORDER BY c.place), bool_and(u.id IS NULL)
    INTO list, all_safe
    FROM unnest(names, types) WITH ORDINALITY AS c (name, type, place)
    LEFT JOIN unsafe AS u ON u.id = c.type LEFT JOIN pg_type AS t ON t.oid = c.type;
    RETURN CASE WHEN NOT all_safe THEN list END;
END $$;

-- Raises SG006 unless watch_prepare() has approved the condition for this table: a role that may call watch() can create
-- triggers with any argument.
CREATE OR REPLACE FUNCTION socketio_pg.watch_check(spec jsonb, relation oid) RETURNS void
LANGUAGE plpgsql STABLE AS $$
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
        channel := channel || (image ->> parts[n]) || parts[n + 1];
    END LOOP;
    RETURN CASE WHEN image IS NOT NULL AND socketio_pg.channel_problem(channel) IS NULL THEN channel END;
END $$;

-- Returns the present columns of the watched table, in order: `shown` in new and old (`columns` without `exclude`), the
-- primary `key`, both together (`tracked`), and the ones that a channel may name (`usable`). `whole`: all are shown.
-- `unsure`: a type, also of an excluded column, is not built in, or the catalog may be out of date: see watch_list().
DROP FUNCTION IF EXISTS socketio_pg.watch_columns;
CREATE FUNCTION socketio_pg.watch_columns(
    spec jsonb, relation oid, OUT shown text[], OUT key text[], OUT tracked text[], OUT usable text[], OUT whole boolean,
    OUT unsure boolean
) LANGUAGE plpgsql STABLE AS $$
DECLARE
    wanted text[];
    hidden text[] := '{}';
    numbers smallint[];
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
    -- A transaction whose snapshot is older than the table sees no columns.
    SELECT coalesce(array_agg(c.name) FILTER (WHERE c.chosen), '{}'), array_agg(c.name) FILTER (WHERE c.in_key),
        coalesce(array_agg(c.name) FILTER (WHERE c.chosen OR c.in_key), '{}'), array_agg(c.name) FILTER (WHERE c.open),
        coalesce(bool_and(c.chosen), wanted IS NULL AND hidden = '{}'),
        count(*) = 0 OR bool_or(c.own_type) OR current_setting('transaction_isolation') <> 'read committed'
    INTO shown, key, tracked, usable, whole, unsure
    FROM (
        SELECT o.name, o.open, o.own_type, o.open AND (wanted IS NULL OR o.name = ANY (wanted)) AS chosen,
            -- Without the index's INCLUDE columns. The array counts from 0.
            o.open AND o.attnum = ANY ((
                SELECT (i.indkey::smallint[])[0 : i.indnkeyatts - 1]
                FROM pg_index AS i WHERE i.indrelid = relation AND i.indisprimary
            )::smallint[]) AS in_key
        FROM (
            -- Virtual generated columns have no value in a trigger.
            SELECT a.attname::text AS name, a.attnum, a.atttypid >= 16384 AS own_type, a.attgenerated <> 'v' AND a.attname <> ALL (hidden)
                AND (numbers IS NULL OR a.attnum <> ALL (numbers)) AS open
            FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
            ORDER BY a.attnum
        ) AS o
    ) AS c;
END $$;

-- Returns the parts of the channel's name, or NULL if one of its columns is excluded: the name must not disclose it.
CREATE OR REPLACE FUNCTION socketio_pg.watch_parts(spec jsonb, usable text[]) RETURNS text[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT array_agg(p.part ORDER BY p.place) FILTER (WHERE p.ok)
    FROM (
        SELECT part, place, bool_and(place % 2 = 1 OR part = ANY (usable)) OVER () AS ok
        FROM jsonb_array_elements_text(spec -> 'parts') WITH ORDINALITY AS e (part, place)
    ) AS p
$$;

-- Sends one message about the whole statement.
DROP FUNCTION IF EXISTS socketio_pg.watch_tell;
CREATE FUNCTION socketio_pg.watch_tell(spec jsonb, channel text, payload jsonb, place bigint) RETURNS void
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

-- Sends messages about rows in order. `olds` and `news` are parallel arrays; except for an UPDATE, one of them is NULL.
-- `c`: the result of watch_columns(). `kept`: whether each row fulfils the condition, NULL for all. `places`: the place of
-- each row, or one for all. Returns the number of messages that have no channel.
DROP FUNCTION IF EXISTS socketio_pg.watch_send;
CREATE FUNCTION socketio_pg.watch_send(
    spec jsonb, op text, c record, envelope jsonb, olds jsonb[], news jsonb[], kept boolean[], places bigint[]
) RETURNS bigint LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    template boolean;
    parts text[];
    fixed text := spec ->> 'channel';
    tier text := spec ->> 'tier';
    max_size integer := CASE WHEN spec ->> 'tier' = 'notify' THEN 7999 ELSE @MAX_PAYLOAD@ END;
    keep_old boolean := spec -> 'old';
    unsent bigint;
BEGIN
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
        -- A row that moves from one channel to another is deleted in the first and inserted in the second, so that
        -- subscribers of one channel never see values that belong to the other.
        SELECT number, 1 AS part, 'DELETE' AS op, old_channel AS channel, o, NULL::jsonb AS n, '[]'::jsonb AS columns,
            true AS moved
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
            envelope || jsonb_build_object('op', k.op, 'pk', k.key)
                || CASE WHEN k.moved THEN '{"moved": true}'::jsonb ELSE '{}' END AS short,
            jsonb_build_object('changed', k.columns, 'new', CASE
                WHEN c.whole OR k.n IS NULL THEN k.n
                ELSE coalesce((SELECT jsonb_object_agg(s, k.n -> s) FROM unnest(c.shown) AS s WHERE k.n ? s), '{}')
            END, 'old', CASE
                WHEN k.o IS NULL THEN NULL
                -- Without old images, a message still needs the row's previous key.
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
            WHEN size <= max_size THEN everything
            -- Without the key if even that is too large.
            WHEN octet_length(short::text) < max_size - 20 THEN short || '{"truncated": true}'
            ELSE short || '{"truncated": true, "pk": null}'
        END AS payload
        FROM sized OFFSET 0
    ), logged AS (
        INSERT INTO socketio_pg.outbox (channel, payload, size, place, xid)
        SELECT channel, payload, octet_length(payload::text), coalesce(places[number], places[1]), pg_current_xact_id()
        FROM message
        -- watch() validates the name, but a role that may call watch() can also create triggers itself.
        WHERE tier = 'log' AND channel IS NOT NULL AND (template OR (channel !~ '[\u0001-\u001f\u007f-\u009f]'
            AND NOT starts_with(channel, 'socketio_pg') AND octet_length(channel) BETWEEN 1 AND 63)) ORDER BY number, part
    ), notified AS (
        SELECT pg_notify(channel, payload::text) FROM (
            SELECT channel, payload FROM message WHERE tier = 'notify' AND channel IS NOT NULL
            ORDER BY number, part
        ) AS m OFFSET 0
    )
    SELECT count(*) FILTER (WHERE channel IS NULL) + 0 * (SELECT count(*) FROM notified) INTO unsent FROM message;
    RETURN unsent;
END $$;
