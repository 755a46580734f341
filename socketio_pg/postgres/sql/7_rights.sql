-- Owners of the objects above, and rights on them that an installation must take away or hand on. Other rights follow, as
-- options of `init`.

-- A superuser may upgrade a schema of another role, which then owns the new objects too: its functions use them.
DO $$
DECLARE
    found record;
BEGIN
    FOR found IN
        WITH objects (kind, name, owner, schema) AS (
            SELECT 'TABLE', c.oid::regclass::text, c.relowner, c.relnamespace
            FROM pg_class AS c WHERE c.relkind IN ('r', 'v', 'S') AND NOT EXISTS (
                SELECT FROM pg_depend AS d
                WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'i' AND c.relkind = 'S')
            UNION ALL
            SELECT 'FUNCTION', p.oid::regprocedure::text, p.proowner, p.pronamespace FROM pg_proc AS p
        )
        SELECT o.kind, o.name, pg_get_userbyid(n.nspowner) AS owner
        FROM objects AS o JOIN pg_namespace AS n ON n.oid = o.schema
        WHERE n.nspname = 'socketio_pg' AND o.owner <> n.nspowner AND pg_has_role(n.nspowner, 'MEMBER')
            AND pg_get_userbyid(o.owner) = current_user
    LOOP
        EXECUTE format('ALTER %s %s OWNER TO %I', found.kind, found.name, found.owner);
    END LOOP;
END $$;

-- ALTER DEFAULT PRIVILEGES may have granted other roles anything on the new objects: to read all messages, to lead, and to
-- run code of their own in a trigger with the rights of whoever publishes. Later grants are the operator's.
DO $$
DECLARE
    -- NULL at the first installation.
    before CONSTANT integer := (SELECT version FROM socketio_pg.schema_version);
    found record;
BEGIN
    FOR found IN
        WITH objects (kind, id, name, owner, acl, is_new) AS (
            SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, c.oid, c.oid::regclass::text, c.relowner,
                c.relacl, before IS NULL OR (before < 4
                    AND c.relname ~ '^(lease|busy_until|cluster_key|newest_|removed_position|watch_failure)')
                OR (before < 6 AND c.relname ~ '^(published|consumers?|session(_owner)?)$')
                OR (before < 7 AND c.relname ~ '^presence(_process|_member|_channel)?$')
                OR (before < 7 AND c.relname ~ '^(rule|retention|channel_trim|trim_number)$')
            FROM pg_class AS c WHERE c.relnamespace = 'socketio_pg'::regnamespace AND c.relkind IN ('r', 'v', 'S')
            UNION ALL
            SELECT 'FUNCTION', p.oid, p.oid::regprocedure::text, p.proowner, p.proacl,
                before IS NULL OR (before < 6 AND (p.proname ~ '^(claim|publish_as|consume.*|snapshot|live_.*)$'
                    OR (p.proname = 'publish' AND p.pronargs > 2)))
                OR (before < 7 AND (p.proname ~ '^(probe_kinds|rules_changed|note_trim|trimmed_.*|publish_with_meta|add_with_meta|chosen_meta|consume)$'
                    OR p.proname ~ '^(presence_.*|control|disconnect_.*|unsubscribe_user|send_to_user)$'
                    OR (p.proname IN ('publish', 'publish_as') AND p.pronargs = 6)))
            FROM pg_proc AS p WHERE p.pronamespace = 'socketio_pg'::regnamespace
        )
        SELECT o.kind, o.name, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS role,
            CASE WHEN o.is_new THEN 'ALL' ELSE 'TRIGGER, REFERENCES' END AS rights
        FROM objects AS o CROSS JOIN aclexplode(o.acl) AS a
        WHERE a.grantee <> o.owner AND (
            -- What PUBLIC may call is decided where the function is.
            (o.is_new AND NOT (o.kind = 'FUNCTION' AND a.grantee = 0))
            OR (o.kind = 'TABLE' AND a.privilege_type IN ('TRIGGER', 'REFERENCES')))
        GROUP BY 1, 2, 3, 4
    LOOP
        EXECUTE format('REVOKE %s ON %s %s FROM %s CASCADE', found.rights, found.kind, found.name, found.role);
    END LOOP;
    -- The roles that an older version has set up as servers' need the new objects. They may write head and call these
    -- functions; a role that default privileges have given all that could do whatever a server does before.
    IF before <= 6 THEN
        FOR found IN
            SELECT quote_ident(pg_get_userbyid(a.grantee)) AS role
            FROM pg_class AS c CROSS JOIN aclexplode(c.relacl) AS a
            WHERE c.oid = 'socketio_pg.head'::regclass AND a.privilege_type = 'UPDATE' AND a.grantee <> 0
                AND a.grantee <> c.relowner AND NOT EXISTS (
                    SELECT FROM pg_proc AS p
                    WHERE p.pronamespace = c.relnamespace AND p.proname = 'decide' AND NOT EXISTS (
                        SELECT FROM aclexplode(p.proacl) AS called WHERE called.grantee = a.grantee))
        LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION socketio_pg.probe_kinds(text[], text[]),
                socketio_pg.publish_with_meta(text, text, boolean, text, jsonb, text),
                socketio_pg.add_with_meta(text, jsonb, jsonb) TO %s', found.role);
            EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON socketio_pg.presence_process, socketio_pg.presence_member,
                socketio_pg.presence_channel TO %s', found.role);
            EXECUTE format('GRANT SELECT ON socketio_pg.presence TO %s', found.role);
            EXECUTE format('GRANT EXECUTE ON FUNCTION socketio_pg.presence_count(text[], integer[], text[], text[], integer[], text),
                socketio_pg.presence_beat(uuid, text, double precision), socketio_pg.presence_sweep(text, boolean),
                socketio_pg.presence_write(uuid, text[], text[], text[], text[], text[], bigint[], text[], text[], text, boolean)
                TO %s', found.role);
            EXECUTE format('GRANT SELECT ON socketio_pg.rule TO %s', found.role);
            EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON socketio_pg.retention, socketio_pg.channel_trim TO %s',
                found.role);
            EXECUTE format('GRANT SELECT, UPDATE ON SEQUENCE socketio_pg.trim_number TO %s', found.role);
            EXECUTE format('GRANT EXECUTE ON FUNCTION socketio_pg.trimmed_together(text, bigint),
                socketio_pg.note_trim(bigint) TO %s', found.role);
            EXECUTE format('GRANT SELECT ON socketio_pg.watches, socketio_pg.watch_triggers TO %s', found.role);
            EXECUTE format('GRANT EXECUTE ON FUNCTION socketio_pg.trigger_spec(bytea), socketio_pg.watch_failures(text) TO %s',
                found.role);
            CONTINUE WHEN before = 6;
            EXECUTE format('GRANT SELECT, UPDATE, DELETE ON socketio_pg.published TO %s', found.role);
            EXECUTE format('GRANT SELECT ON socketio_pg.consumers TO %s', found.role);
            EXECUTE format('GRANT EXECUTE ON FUNCTION socketio_pg.live_table(text),
                socketio_pg.live_rows(text[], text[], text[], jsonb, double precision) TO %s', found.role);
            EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON socketio_pg.session, socketio_pg.session_owner TO %s',
                found.role);
            CONTINUE WHEN before = 5;
            EXECUTE format('GRANT SELECT, UPDATE ON SEQUENCE socketio_pg.newest_position, socketio_pg.newest_id,
                socketio_pg.removed_position, socketio_pg.outbox_id_seq TO %s', found.role);
            CONTINUE WHEN before = 4;
            EXECUTE format('GRANT SELECT, UPDATE ON SEQUENCE socketio_pg.lease, socketio_pg.busy_until TO %s', found.role);
            EXECUTE format('GRANT SELECT ON socketio_pg.cluster_key TO %s', found.role);
        END LOOP;
    END IF;
    IF before <= 5 THEN
        -- A role that may publish may also give an id, choose NOTIFY, and take a snapshot.
        FOR found IN
            SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS role,
                CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END AS option
            FROM pg_proc AS p CROSS JOIN aclexplode(p.proacl) AS a
            WHERE p.oid = 'socketio_pg.publish(text, jsonb)'::regprocedure AND a.grantee <> p.proowner
        LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION socketio_pg.publish(text, jsonb, boolean, text, text, text),
                socketio_pg.publish(text, jsonb, text), socketio_pg.publish_as(text, text, boolean, text),
                socketio_pg.publish_as(text, text, boolean, text, text, text), socketio_pg.snapshot() TO %s%s', found.role, found.option);
        END LOOP;
    END IF;
    -- Functions that have replaced those of version 6 with other parameters or columns get their privileges.
    FOR found IN
        SELECT former.functions, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS role,
            CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END AS option
        FROM (VALUES
            ('publish(text, jsonb, boolean, text)', 'socketio_pg.publish(text, jsonb, boolean, text, text, text)'),
            ('publish_as(text, text, boolean, text)', 'socketio_pg.publish_as(text, text, boolean, text, text, text)'),
            ('consume_6(text, text[], integer, text)', 'socketio_pg.consume(text, text[], integer, text)')
        ) AS former (name, functions)
        JOIN pg_proc AS p ON p.oid = to_regprocedure('socketio_pg.' || former.name)
        CROSS JOIN aclexplode(p.proacl) AS a
        WHERE before = 6 AND a.grantee <> p.proowner
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s%s', found.functions, found.role, found.option);
    END LOOP;
END $$;

DROP FUNCTION IF EXISTS socketio_pg.publish(text, jsonb, boolean, text), socketio_pg.consume_6(text, text[], integer, text);

-- Of version 6: decide() uses probe_kinds().
DROP FUNCTION IF EXISTS socketio_pg.probe(text[]);
