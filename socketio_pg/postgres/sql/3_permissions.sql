-- Row-level security decides who may subscribe and publish (AUTHORIZATION=rls). The policies on this table are yours.

-- It stays empty: a row is only ever written to be rolled back. A client may subscribe to a channel when a SELECT policy
-- shows it a row of that channel, and publish to it when an INSERT policy lets it write one.
CREATE TABLE IF NOT EXISTS socketio_pg.messages (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    channel    text COLLATE "C" NOT NULL,
    -- What would be sent. 'event' is the only kind so far: a policy that names it stays right when there are more.
    kind       text NOT NULL DEFAULT 'event',
    created_at timestamptz NOT NULL DEFAULT now()
) WITH (
    -- As the outbox: nearly empty, with many dead rows.
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_analyze_threshold = 1000000000,
    vacuum_truncate = false
);

ALTER TABLE socketio_pg.messages ENABLE ROW LEVEL SECURITY;

-- For policies: the channel that is asked about.
CREATE OR REPLACE FUNCTION socketio_pg.channel() RETURNS text
LANGUAGE sql STABLE AS $$ SELECT nullif(pg_catalog.current_setting('socketio_pg.channel', true), '') $$;

-- One row of each channel, past the policies: the client is shown its own by them, or not.
CREATE OR REPLACE FUNCTION socketio_pg.probe(channels text[]) RETURNS bigint[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found text;
    row_id bigint;
    ids bigint[] := '{}';
BEGIN
    FOREACH found IN ARRAY channels LOOP
        INSERT INTO socketio_pg.messages (channel) VALUES (found) RETURNING id INTO row_id;
        ids := ids || row_id;
    END LOOP;
    RETURN ids;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.probe(text[]) FROM PUBLIC;

-- What each of several clients may do: 'allowed', 'denied', or 'failed: …' with the reason, which also means no.
-- `actions` are 'subscribe' and 'publish', `claims` JSON. After so many seconds no further one is begun: then there are
-- fewer answers than questions. To be called in a transaction that is rolled back.
--
-- Not SECURITY DEFINER, in which the role could not be set, and without a search_path of its own: what the policies
-- call finds its tables as everywhere else. So everything in here is qualified.
CREATE OR REPLACE FUNCTION socketio_pg.decide(
    actions text[], roles text[], claims text[], channels text[], seconds double precision
) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    probes bigint[] := socketio_pg.probe(channels);
    deadline timestamptz := pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) pg_catalog.make_interval(secs => seconds);
    allowed boolean;
    answer text;
BEGIN
    FOR n IN 1 .. pg_catalog.cardinality(channels) LOOP
        allowed := NULL;
        -- A subtransaction: its end takes back the role, the settings and the row, whatever happens in between.
        BEGIN
            PERFORM pg_catalog.set_config('request.jwt.claims', claims[n], true);
            PERFORM pg_catalog.set_config('socketio_pg.channel', channels[n], true);
            PERFORM pg_catalog.set_config('role', roles[n], true);
            -- Policies do not count for the table's owner, for who has the owner's rights, and for superusers, which
            -- is hardly what was meant. BYPASSRLS says so by its name.
            IF NOT pg_catalog.row_security_active('socketio_pg.messages'::pg_catalog.regclass) AND NOT EXISTS (
                SELECT FROM pg_catalog.pg_roles AS r
                WHERE r.rolname OPERATOR(pg_catalog.=) roles[n]::pg_catalog.name AND r.rolbypassrls AND NOT r.rolsuper
            ) THEN
                RAISE EXCEPTION USING ERRCODE = 'SG004', MESSAGE =
                    'it has the rights of the owner of socketio_pg.messages or of a superuser, for whom policies do not count';
            END IF;
            IF actions[n] OPERATOR(pg_catalog.=) 'publish' THEN
                INSERT INTO socketio_pg.messages (channel) VALUES (channels[n]);
                allowed := true;
            ELSE
                SELECT EXISTS (SELECT FROM socketio_pg.messages AS m WHERE m.id OPERATOR(pg_catalog.=) probes[n])
                INTO allowed;
            END IF;
            RAISE EXCEPTION USING ERRCODE = 'SG003', MESSAGE = 'decided';
        EXCEPTION
            WHEN SQLSTATE 'SG003' THEN
                answer := CASE WHEN allowed THEN 'allowed' ELSE 'denied' END;
            -- A failed ASSERT is not among the others.
            WHEN assert_failure OR OTHERS THEN
                answer := pg_catalog.format('failed: %s %s', SQLSTATE, SQLERRM);
        END;
        RETURN NEXT answer;
        EXIT WHEN pg_catalog.clock_timestamp() OPERATOR(pg_catalog.>) deadline;
    END LOOP;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.decide(text[], text[], text[], text[], double precision) FROM PUBLIC;

-- Permissions have changed, of one channel or of all: servers ask anew about those who subscribe, once this commits.
CREATE OR REPLACE FUNCTION socketio_pg.recheck(channel text DEFAULT NULL) RETURNS void
LANGUAGE sql AS $$ SELECT pg_catalog.pg_notify('socketio_pg_permissions', coalesce(channel, '')) $$;

-- The same as a trigger, for the tables that policies look at.
CREATE OR REPLACE FUNCTION socketio_pg.recheck_on_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_notify('socketio_pg_permissions', '');
    RETURN NULL;
END $$;
