-- Row-level security for subscribing and publishing (AUTHORIZATION=rls). The operator writes the policies on this
-- table.

-- It stays empty: every row that is inserted is rolled back. A client may subscribe to a channel if a SELECT policy
-- shows it a row of that channel, and publish to it if an INSERT policy lets it insert one.
CREATE TABLE IF NOT EXISTS socketio_pg.messages (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    channel    text COLLATE "C" NOT NULL,
    -- What the question is about: 'event' for messages, 'presence' for who is there (SELECT: see them, INSERT: be one of
    -- them), 'ephemeral' for messages that are not stored (INSERT). A policy that does not name it applies to all of them.
    kind       text NOT NULL DEFAULT 'event',
    created_at timestamptz NOT NULL DEFAULT now()
) WITH (
    -- As for the outbox: nearly empty, with many dead rows.
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_analyze_threshold = 1000000000,
    vacuum_truncate = false
);

ALTER TABLE socketio_pg.messages ENABLE ROW LEVEL SECURITY;

-- For policies: the channel of the present question.
CREATE OR REPLACE FUNCTION socketio_pg.channel() RETURNS text
LANGUAGE sql STABLE AS $$ SELECT nullif(pg_catalog.current_setting('socketio_pg.channel', true), '') $$;

-- Inserts one row per channel and kind, bypassing the policies; the SELECT policies then show it to the client or not.
CREATE OR REPLACE FUNCTION socketio_pg.probe_kinds(channels text[], kinds text[]) RETURNS bigint[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    row_id bigint;
    ids bigint[] := '{}';
BEGIN
    FOR n IN 1 .. cardinality(channels) LOOP
        INSERT INTO socketio_pg.messages (channel, kind) VALUES (channels[n], kinds[n]) RETURNING id INTO row_id;
        ids := ids || row_id;
    END LOOP;
    RETURN ids;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.probe_kinds(text[], text[]) FROM PUBLIC;

-- Decides permissions of several clients. Each answer is 'allowed', 'denied', or 'failed: …' with the reason, which
-- means no as well. `actions` are those of access/questions.py, `claims` are JSON. After `seconds` no further question is
-- started, and there are fewer answers than questions. The caller must roll its transaction back.
--
-- Not SECURITY DEFINER, which forbids setting the role, and without a fixed search_path, so that functions called by
-- policies find their tables as usual. Therefore all names in here are qualified.
CREATE OR REPLACE FUNCTION socketio_pg.decide(
    actions text[], roles text[], claims text[], channels text[], seconds double precision
) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    kinds CONSTANT text[] := ARRAY(
        SELECT CASE WHEN a.action OPERATOR(pg_catalog.=) ANY ('{presence,join}'::pg_catalog.text[]) THEN 'presence'
            WHEN a.action OPERATOR(pg_catalog.=) 'ephemeral' THEN 'ephemeral' ELSE 'event' END
        FROM pg_catalog.unnest(actions) WITH ORDINALITY AS a (action, n) ORDER BY a.n);
    probes CONSTANT bigint[] := socketio_pg.probe_kinds(channels, kinds);
    deadline timestamptz := pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) pg_catalog.make_interval(secs => seconds);
    allowed boolean;
    answer text;
BEGIN
    FOR n IN 1 .. pg_catalog.cardinality(channels) LOOP
        allowed := NULL;
        -- A subtransaction: its rollback undoes the role, the settings and the row, whatever happens in between.
        BEGIN
            PERFORM pg_catalog.set_config('request.jwt.claims', claims[n], true);
            PERFORM pg_catalog.set_config('socketio_pg.channel', channels[n], true);
            PERFORM pg_catalog.set_config('role', roles[n], true);
            -- Policies do not apply to the table's owner, to members of the owner's role, and to superusers, which is
            -- hardly intended for clients. A role with BYPASSRLS has been exempted on purpose.
            IF NOT pg_catalog.row_security_active('socketio_pg.messages'::pg_catalog.regclass) AND NOT EXISTS (
                SELECT FROM pg_catalog.pg_roles AS r
                WHERE r.rolname OPERATOR(pg_catalog.=) roles[n]::pg_catalog.name AND r.rolbypassrls AND NOT r.rolsuper
            ) THEN
                RAISE EXCEPTION USING ERRCODE = 'SG004', MESSAGE =
                    'it has the privileges of the owner of socketio_pg.messages or of a superuser, which bypass all policies';
            END IF;
            IF actions[n] OPERATOR(pg_catalog.=) ANY ('{publish,join,ephemeral}'::pg_catalog.text[]) THEN
                INSERT INTO socketio_pg.messages (channel, kind) VALUES (channels[n], kinds[n]);
                allowed := true;
            ELSE
                SELECT EXISTS (SELECT FROM socketio_pg.messages AS m WHERE m.id OPERATOR(pg_catalog.=) probes[n])
                INTO allowed;
            END IF;
            RAISE EXCEPTION USING ERRCODE = 'SG003', MESSAGE = 'decided';
        EXCEPTION
            WHEN SQLSTATE 'SG003' THEN
                answer := CASE WHEN allowed THEN 'allowed' ELSE 'denied' END;
            -- OTHERS does not include a failed ASSERT.
            WHEN assert_failure OR OTHERS THEN
                answer := pg_catalog.format('failed: %s %s', SQLSTATE, SQLERRM);
        END;
        RETURN NEXT answer;
        EXIT WHEN pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>) deadline;
    END LOOP;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.decide(text[], text[], text[], text[], double precision) FROM PUBLIC;

-- Notifies servers that permissions for one channel, or for all, have changed: after the commit they check existing
-- subscriptions again. Through the log, since every role can forge and read a notification.
CREATE OR REPLACE FUNCTION socketio_pg.recheck(channel text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    payload jsonb := to_jsonb(coalesce(channel, ''));
BEGIN
    IF octet_length(channel) > 63 THEN
        RAISE EXCEPTION USING ERRCODE = 'SG001', MESSAGE = socketio_pg.channel_problem(channel);
    END IF;
    -- As in publish().
    PERFORM pg_current_xact_id();
    INSERT INTO socketio_pg.outbox (channel, payload, size)
    VALUES ('socketio_pg_permissions', payload, octet_length(payload::text));
END $$;

-- The same as a trigger, for tables that policies read.
CREATE OR REPLACE FUNCTION socketio_pg.recheck_on_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM socketio_pg.recheck();
    RETURN NULL;
END $$;
