-- The log's functions, trigger and views, replaced at each installation. Names are qualified and search_path is fixed:
-- publish() and ring() run with their owner's privileges, so that a publisher needs only EXECUTE.

-- Returns the problem with a channel name, by the rules of core/channels.py; NULL if it is valid. It has no SET
-- search_path of its own, for speed: only functions of this schema may call it, and it uses theirs.
CREATE OR REPLACE FUNCTION socketio_pg.channel_problem(channel text) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF channel IS NULL OR channel = '' THEN
        RETURN 'channel must not be empty';
    ELSIF octet_length(channel) > 63 THEN
        RETURN format('channel must have at most 63 bytes of UTF-8, this one has %s', octet_length(channel));
    ELSIF channel ~ '[\u0001-\u001f\u007f-\u009f]' THEN
        RETURN 'channel must not contain control characters';
    ELSIF channel ~ '^[\u0020\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]|[\u0020\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]$' THEN
        RETURN 'channel must not start or end with a space';
    ELSIF strpos(channel, '*') > 0 THEN
        RETURN 'channel must not contain ''*''';
    ELSIF starts_with(channel, 'socketio_pg') THEN
        RETURN 'channels that start with ''socketio_pg'' are reserved';
    END IF;
    RETURN NULL;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.channel_problem(text) FROM PUBLIC;

-- Returns the next place in the present transaction: see watch_begin(). The settings are the transaction's, and a rollback
-- to a savepoint restores them. Any role may set them, so what is not a number counts as 0.
CREATE OR REPLACE FUNCTION socketio_pg.next_place() RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    place bigint := coalesce(substring(current_setting('socketio_pg.place', true) FROM '^[0-9]{1,15}$'), '0')::bigint + 1;
    done text;
BEGIN
    done := set_config('socketio_pg.place', place::text, true);
    -- The next row that a statement changes comes after this place.
    done := set_config('socketio_pg.run', '', true);
    RETURN place;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.next_place() FROM PUBLIC;

-- Notes the newest id in the outbox before the present transaction adds a message with a place.
CREATE OR REPLACE FUNCTION socketio_pg.note_sending() RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    newest CONSTANT text := coalesce(pg_sequence_last_value('socketio_pg.outbox_id_seq'::regclass), 0);
    done text;
BEGIN
    IF coalesce(current_setting('socketio_pg.sent', true), '') = '' THEN
        done := set_config('socketio_pg.sent_first', newest, true);
    END IF;
    done := set_config('socketio_pg.sent', newest, true);
END $$;

REVOKE ALL ON FUNCTION socketio_pg.note_sending() FROM PUBLIC;

-- Publishes a JSON value within the caller's transaction. Raises SG001 for an invalid channel name and SG002 for a
-- payload that is too large. SQL's NULL is published as JSON's null.
CREATE OR REPLACE FUNCTION socketio_pg.publish(channel text, payload jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    problem text := socketio_pg.channel_problem(channel);
    bytes integer;
BEGIN
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'SG001', MESSAGE = problem;
    END IF;
    payload := coalesce(payload, 'null');
    bytes := octet_length(payload::text);
    IF bytes > @MAX_PAYLOAD@ THEN
        RAISE EXCEPTION USING ERRCODE = 'SG002',
            MESSAGE = format('payload has %s bytes of UTF-8 as JSON; at most @MAX_PAYLOAD@ are allowed', bytes),
            HINT = 'Set MAX_PAYLOAD and run "socketio-pg init" to allow more.';
    END IF;
    -- Assigns a transaction id before the row's id: the relay's snapshot must contain every transaction that has an id.
    PERFORM pg_current_xact_id();
    -- In a transaction that has changed rows of watched tables, the message has a place among theirs.
    IF current_setting('socketio_pg.place', true) <> '' THEN
        PERFORM socketio_pg.note_sending();
        INSERT INTO socketio_pg.outbox (channel, payload, size, place, xid)
        VALUES (publish.channel, publish.payload, bytes, socketio_pg.next_place(), pg_current_xact_id());
    ELSE
        INSERT INTO socketio_pg.outbox (channel, payload, size) VALUES (publish.channel, publish.payload, bytes);
    END IF;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.publish(text, jsonb) FROM PUBLIC;

-- Wakes the relay at commit, unless the relay is busy and will read the outbox anyway: until a time of at most two seconds
-- ahead. A later time was set before the clock was set back.
--
-- A transaction that has executed NOTIFY cannot be prepared. Where transactions may be prepared, it does not ring, unless
-- the setting socketio_pg.doorbell is on; the relay looks more often (log/doorbell.py). With off it never rings.
CREATE OR REPLACE FUNCTION socketio_pg.ring() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- One expression without a query, which PL/pgSQL evaluates faster: 2 us instead of 7.
    IF abs(coalesce(pg_sequence_last_value('socketio_pg.busy_until'::regclass), 0)
        - date_part('epoch', clock_timestamp()) * 1000 - 1000) > 1000
        AND (CASE lower(current_setting('socketio_pg.doorbell', true)) WHEN 'on' THEN true WHEN 'off' THEN false
            ELSE current_setting('max_prepared_transactions') = '0' END)
    THEN
        PERFORM pg_notify('socketio_pg_bell', '');
    END IF;
    RETURN NULL;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.ring() FROM PUBLIC;

DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = 'socketio_pg.outbox'::regclass AND tgname = 'ring'
    ) THEN
        CREATE CONSTRAINT TRIGGER ring AFTER INSERT ON socketio_pg.outbox
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION socketio_pg.ring();
    END IF;
END $$;

-- Notes which transaction has written the row of head.
CREATE OR REPLACE FUNCTION socketio_pg.sign_head() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.written_by := pg_current_xact_id();
    IF NEW.trimmed > OLD.trimmed AND current_setting('socketio_pg.rules', true) IS DISTINCT FROM 'on' THEN
        PERFORM socketio_pg.note_trim(NEW.trimmed);
    END IF;
    RETURN NEW;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.sign_head() FROM PUBLIC;

-- Notes the newest position that is removed from the log by hand: replays from before it are not complete. If the
-- transaction rolls back, they are only thought to be incomplete. Once a statement: each change causes a gap.
CREATE OR REPLACE FUNCTION socketio_pg.note_removed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    removed bigint;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        SELECT max(position) INTO removed FROM socketio_pg.log;
    ELSE
        SELECT max(position) INTO removed FROM old_rows;
    END IF;
    IF removed > coalesce(pg_sequence_last_value('socketio_pg.removed_position'::regclass), 0) THEN
        PERFORM setval('socketio_pg.removed_position', removed);
    END IF;
    RETURN NULL;
END $$;

REVOKE ALL ON FUNCTION socketio_pg.note_removed() FROM PUBLIC;

DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = 'socketio_pg.head'::regclass AND tgname = 'sign'
    ) THEN
        CREATE TRIGGER sign BEFORE UPDATE ON socketio_pg.head FOR EACH ROW EXECUTE FUNCTION socketio_pg.sign_head();
    END IF;
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = 'socketio_pg.log'::regclass AND tgname = 'removed'
    ) THEN
        -- The relay's trims are in head.
        CREATE TRIGGER removed AFTER DELETE ON socketio_pg.log REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT
            WHEN (current_setting('socketio_pg.trimming', true) IS DISTINCT FROM 'on')
            EXECUTE FUNCTION socketio_pg.note_removed();
        CREATE TRIGGER truncated BEFORE TRUNCATE ON socketio_pg.log
            FOR EACH STATEMENT EXECUTE FUNCTION socketio_pg.note_removed();
    END IF;
END $$;

-- Adds a cluster key, and deletes those that no server has used for a minute: see the table. Running servers follow.
CREATE OR REPLACE FUNCTION socketio_pg.rotate_cluster_key() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    LOCK TABLE socketio_pg.cluster_key IN SHARE ROW EXCLUSIVE MODE;
    DELETE FROM socketio_pg.cluster_key AS old WHERE EXISTS (
        SELECT FROM socketio_pg.cluster_key AS new
        WHERE new.id > old.id AND new.created_at < clock_timestamp() - interval '80 seconds'
    );
    INSERT INTO socketio_pg.cluster_key (key)
    VALUES (sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));
END $$;

REVOKE ALL ON FUNCTION socketio_pg.rotate_cluster_key() FROM PUBLIC;

-- For operators: the messages per channel in the log, and the nodes that are alive.
CREATE OR REPLACE VIEW socketio_pg.channels AS
    SELECT channel, max(position) AS last_position, count(*) AS messages, now() - max(published_at) AS age
    FROM socketio_pg.log WHERE NOT starts_with(channel, 'socketio_pg') GROUP BY channel;

CREATE OR REPLACE VIEW socketio_pg.nodes AS
    SELECT name, version, coalesce(id = (SELECT leader FROM socketio_pg.head), false) AS relay, position, clients,
        started_at, seen_at, refused, workers
    FROM socketio_pg.node WHERE seen_at > now() - interval '30 seconds';
